"""A case's files: what they are called without their endings, and what they hold."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from volumediff.data.cases import Case
from volumediff.data.stream import open_regular
from volumediff.data.volume import OTHER_FORMATS, SUFFIXES
from volumediff.errors import DataError
from volumediff.storage.digests import sha256, sha256_of_stream

__all__ = ["VOLUMES", "contents", "digests", "stem_of"]

VOLUMES = (*SUFFIXES, *OTHER_FORMATS)


def stem_of(path: Path) -> str:
    """The name of a volume without its ending."""
    for suffix in VOLUMES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.name


def digests(case: Case, *, also: Mapping[str, Path] = MappingProxyType({})) -> dict[str, str]:
    """SHA-256 of every file of a case by channel; a DICOM series is its files in order.

    Arguments:
        case: with its images
        also: further files by name

    Raises:
        DataError: a file cannot be read
    """
    found = {}
    for name, path in {**case.images, **also}.items():
        digest = b"".join(contents(path))
        found[name] = sha256(digest) if path.is_dir() else digest.hex()
    return found


def contents(path: Path) -> list[bytes]:
    """SHA-256 of a file, or of those of a DICOM series in order.

    Raises:
        DataError: a file cannot be read
    """
    files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
    found = []
    for file in files:
        try:
            with open_regular(file) as stream:
                found.append(bytes.fromhex(sha256_of_stream(stream)))
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
    return found
