"""Folders of DICOM files in trees, such as patient, study and series."""

import os
from collections.abc import Iterator
from pathlib import Path

from volumediff.data.dicom_files.recognition import is_dicom

__all__ = ["holds_dicom", "series_folders"]

GLANCE = 20  # files of a folder that are opened: a series holds hundreds of one kind
INDEX = "DICOMDIR"  # of a medium; it holds no slice


def holds_dicom(folder: Path) -> bool:
    """Whether one of the first files of a folder is of DICOM."""
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_file() and not e.name.startswith("."))
    names = [name for name in names if name.upper() != INDEX]
    return any(is_dicom(folder / name) for name in names[:GLANCE])


def series_folders(folder: Path) -> Iterator[Path]:
    """The folders of DICOM files in a tree, at any depth, by name."""
    for where, inner, files in os.walk(folder):
        inner[:] = sorted(name for name in inner if not name.startswith("."))
        if files and holds_dicom(Path(where)):
            yield Path(where)
