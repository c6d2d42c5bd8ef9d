"""Bytes of a file, decompressed and checked to the last one.

A gzip stream ends with the CRC-32 and the length of its content. Readers that stop at the last
voxel never look at them, and hand out damaged voxels; this one reads to the end, in memory that
does not grow with what the stream turns out to hold.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from isal import isal_zlib

from volumediff.errors import DataError

__all__ = ["MOST_PER_BYTE", "Source", "open_regular", "source"]

GZIP = b"\x1f\x8b"
# Deflate cannot expand further: 258 bytes for two bits (zlib's technical notes give 1032:1).
MOST_PER_BYTE = 1032
CHUNK = 1 << 20


@contextmanager
def open_regular(path: Path) -> Iterator[BinaryIO]:
    """Opens a regular file for reading; a pipe, device or folder is refused without blocking."""
    try:
        # A named pipe without a writer blocks a plain open for ever.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        reason = "a link that points nowhere" if path.is_symlink() else "not there"
        raise DataError(f"{path}: expected a file, this is {reason}; check the path.") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be opened ({reason}); check path and rights.") from error
    with os.fdopen(descriptor, "rb") as file:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
            raise DataError(f"{path}: expected a regular file, this is {kind}; give a file.")
        yield file


class Source:
    """A file's content in order: `take` bytes, fill a buffer, then `drain` what is left.

    Arguments:
        file: opened by `open_regular`, at its start
        path: for messages
    """

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.path = path
        self.bytes_on_disk = os.fstat(file.fileno()).st_size
        self.compressed = file.read(2) == GZIP
        self.garbage = False
        file.seek(0)
        self._file = file
        self._pieces = self._inflate() if self.compressed else self._plain()
        self._rest = memoryview(b"")

    @property
    def most_bytes(self) -> int:
        """More than this the content cannot hold."""
        return self.bytes_on_disk * (MOST_PER_BYTE if self.compressed else 1)

    def into(self, buffer: memoryview) -> int:
        """Fills the buffer; returns how many bytes there were."""
        done = 0
        while done < len(buffer):
            if not self._rest:
                piece = next(self._pieces, None)
                if piece is None:
                    break
                self._rest = memoryview(piece)
            n = min(len(self._rest), len(buffer) - done)
            buffer[done : done + n] = self._rest[:n]
            self._rest = self._rest[n:]
            done += n
        return done

    def take(self, n: int) -> bytes:
        """The next n bytes, fewer at the end."""
        buffer = bytearray(n)
        return bytes(buffer[: self.into(memoryview(buffer))])

    def drain(self, limit: int) -> int:
        """Reads on to the end, so that checksums are compared; counts bytes, at most to limit."""
        count = len(self._rest)
        self._rest = memoryview(b"")
        for piece in self._pieces:
            count += len(piece)
            if count >= limit:
                break
        return count

    def _plain(self) -> Iterator[bytes]:
        while piece := self._file.read(CHUNK):
            yield piece

    def _inflate(self) -> Iterator[bytes]:
        # 31 = gzip framing: the library itself compares CRC and length at the end of each member.
        member, data = isal_zlib.decompressobj(31), self._file.read(CHUNK)
        while True:
            try:
                piece = member.decompress(data, CHUNK)
            except isal_zlib.error as error:
                raise DataError(
                    f"{self.path}: expected an intact gzip stream, but it is damaged ({error}); "
                    "copy or export the file again."
                ) from error
            if piece:
                yield piece
            if member.eof:
                data = member.unused_data
                if len(data) < len(GZIP):
                    data += self._file.read(CHUNK)
                if data[:2] != GZIP:
                    self.garbage = bool(data)
                    return
                member = isal_zlib.decompressobj(31)
                continue
            data = member.unconsumed_tail or self._file.read(CHUNK)
            if not data and not piece:
                raise DataError(
                    f"{self.path}: expected a complete gzip stream, but it is cut off before its "
                    "checksum; copy or export the file again."
                )


@contextmanager
def source(path: Path) -> Iterator[Source]:
    """Opens a regular file, gzip or not."""
    with open_regular(path) as file:
        yield Source(file, path)
