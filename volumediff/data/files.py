"""A case's files: what they are called without their endings, and what they hold."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from volumediff.data.cases import Case
from volumediff.data.stream import open_regular
from volumediff.data.volume import OTHER_FORMATS, SUFFIXES
from volumediff.errors import DataError

__all__ = ["VOLUMES", "digests", "stem_of"]

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
        files = sorted(p for p in path.iterdir() if p.is_file()) if path.is_dir() else [path]
        whole = hashlib.sha256()
        for file in files:
            try:
                with open_regular(file) as stream:
                    digest = hashlib.file_digest(stream, "sha256")
            except OSError as error:
                raise DataError(f"{file}: cannot be read ({error.strerror}).") from None
            if not path.is_dir():
                whole = digest
            else:
                whole.update(digest.digest())
        found[name] = whole.hexdigest()
    return found
