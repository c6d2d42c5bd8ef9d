"""Files and folders, as all layouts look at them: hidden ones are skipped, order is by name."""

import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from volumediff.errors import DataError

__all__ = [
    "ASIDE",
    "IMAGE_FOLDERS",
    "LABEL_FOLDERS",
    "VOLUME",
    "below",
    "first_folders",
    "folders",
    "stem",
    "volumes",
    "walk",
]

# A volume by its ending; the voxels of .nhdr, .mhd and .hdr lie in a file beside them.
VOLUME = re.compile(r"\.(nii(\.gz)?|nrrd|nhdr|mha|mhd|mgz|mgh|hdr)$", re.I)
# Folders beside each other that hold the images and the labels of all cases.
IMAGE_FOLDERS = frozenset("image images img imgs volumes".split())
LABEL_FOLDERS = frozenset("label labels mask masks segmentations annotations".split())
# Folders whose content layouts leave aside, as their texts say.
ASIDE = frozenset({"derivatives", "sourcedata", "code"})
# Folders that are looked at to recognise a data set: the folders that hold its parts come first,
# and all of its cases are alike.
GLANCE = 400


def stem(path: Path) -> str:
    """The name of a volume without its ending."""
    return VOLUME.sub("", path.name)


def volumes(folder: Path) -> list[Path]:
    """The volumes of a folder by their endings, whatever they turn out to be."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        names = [
            e.name
            for e in entries
            if VOLUME.search(e.name) and not e.name.startswith(".") and not _is_folder(e)
        ]
    return [folder / name for name in sorted(names)]


def _is_folder(entry: os.DirEntry) -> bool:
    """Whether an entry is a folder, also through links; a link to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def folders(root: Path, depth: int) -> Iterator[Path]:
    """The root and the folders below it, level by level."""
    level = [root] if root.is_dir() else []
    while level:
        yield from level
        if depth == 0:
            return
        depth -= 1
        level = [p for folder in level for p in _inner(folder)]


def first_folders(root: Path, depth: int) -> Iterator[Path]:
    """As `folders`, but only as many as a glance takes: each level is the start of the whole."""
    level, left = ([root] if root.is_dir() else []), GLANCE
    while level and left > 0:
        level = level[:left]
        left -= len(level)
        yield from level
        if depth == 0:
            return
        depth -= 1
        level = list(islice((p for folder in level for p in _inner(folder)), left))


def walk(base: Path, *, hidden: frozenset[str] = frozenset()) -> Iterable[Path]:
    """All volumes below a folder, except for those in folders of the names in `hidden`."""
    for where, inner, files in os.walk(base):
        inner[:] = sorted(f for f in inner if not f.startswith(".") and f not in hidden)
        yield from (Path(where) / f for f in sorted(files) if VOLUME.search(f))


def below(base: Path, name: Any) -> Path:
    """The path that a list or table names, refused when it leaves the folder of the list.

    Raises:
        DataError: no path, or one that leaves the folder, also through links
    """
    if not isinstance(name, str) or "\0" in name:
        raise DataError(f"expected a path, got {name!r}.")
    path = Path(os.path.realpath(base / name))
    if "\\" in name and not path.exists():  # as Windows writes paths
        path = Path(os.path.realpath(base / name.replace("\\", "/")))
    if not path.is_relative_to(os.path.realpath(base)):
        raise DataError(f"the path {name!r} leaves {base}; keep the files below the datalist.")
    return path


def _inner(folder: Path) -> Iterator[Path]:
    """The folders in a folder; a hundred thousand files beside them cost one listing, no more."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if not e.name.startswith(".") and _is_folder(e))
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{folder}: cannot be listed ({reason}); check its rights.") from error
    return (folder / name for name in names)
