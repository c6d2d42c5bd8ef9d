"""Folders of DICOM files in trees, such as patient, study and series: found without opening much.

A file is known by its mark behind 128 bytes, or, where the preamble is missing, by a first element
of group 0002 or 0008. A folder of a series holds hundreds of files of one kind: a few tell.
"""

import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["holds_dicom", "is_dicom", "series_folders"]

GLANCE = 20  # files of a folder that are opened
HEAD = 132
# The first elements of files without preamble: group 0002 or 0008, element below 0100, and then
# the two letters of a value representation, or a length of 32 bits in its place.
GROUPS = (b"\x02\x00", b"\x08\x00")
LONGEST = 64


def is_dicom(path: Path | str) -> bool:
    """Whether the first bytes of a regular file are those of a DICOM file."""
    try:
        if not os.path.isfile(path):
            return False
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError:
        return False
    return head[128:] == b"DICM" or _is_element(head[:8])


def _is_element(head: bytes) -> bool:
    if len(head) < 8 or head[:2] not in GROUPS or head[3] != 0:
        return False
    explicit = head[4:6].isalpha() and head[4:6].isupper()
    return explicit or 0 < int.from_bytes(head[4:8], "little") <= LONGEST


def holds_dicom(folder: Path) -> bool:
    """Whether one of the first files of a folder is of DICOM."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
    names = [name for name in names if name.upper() != "DICOMDIR"]
    return any(is_dicom(folder / name) for name in names[:GLANCE])


def series_folders(folder: Path) -> Iterator[Path]:
    """The folders of DICOM files in a tree, at any depth, by name."""
    for where, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if files and holds_dicom(Path(where)):
            yield Path(where)
