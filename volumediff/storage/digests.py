"""SHA-256 of texts, arrays of bytes and files, in hexadecimal digits; CRC-32 of what was written.

A SHA-256 goes into records and holds for as long as the file. A CRC-32, a tenth of the work, says
whether what was written a moment ago reads back.
"""

import hashlib
from pathlib import Path
from typing import Any, BinaryIO

from isal import isal_zlib

__all__ = ["Hashing", "crc32_of_file", "sha256", "sha256_of_file", "sha256_of_stream"]

# One read of a hash: large enough for full speed, small beside any volume.
CHUNK = 1 << 22


def sha256(*parts: str | bytes | memoryview) -> str:
    """SHA-256 of the parts one after the other; text is UTF-8."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
    return digest.hexdigest()


def sha256_of_stream(stream: BinaryIO, *before: bytes) -> str:
    """SHA-256 of what comes before and of the rest of a stream, which is read in pieces."""
    digest = hashlib.sha256(b"".join(before))
    while chunk := stream.read(CHUNK):
        digest.update(chunk)
    return digest.hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return sha256_of_stream(file)


def crc32_of_file(path: Path) -> int:
    """CRC-32 of a file."""
    crc = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            crc = isal_zlib.crc32(chunk, crc)
    return crc


class Hashing:
    """A file that is written and remembers length and checksums of what passed through it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.bytes = self.crc32 = 0
        self._digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        self._digest.update(data)
        self.crc32 = isal_zlib.crc32(data, self.crc32)
        self.bytes += memoryview(data).nbytes
        return self.file.write(data)

    @property
    def sha256(self) -> str:
        """Of everything so far."""
        return self._digest.hexdigest()
