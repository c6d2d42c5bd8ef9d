"""Files and folders, as all layouts look at them: hidden ones are skipped, order is by name."""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from volumediff.errors import DataError

__all__ = [
    "ASSOCIATED_WORD",
    "AUXILIARY_WORDS",
    "IMAGE_FOLDERS",
    "IMAGE_WORDS",
    "LABEL_FOLDERS",
    "LABEL_WORDS",
    "NIFTI",
    "below",
    "first_folders",
    "folders",
    "in_order",
    "label_names",
    "read_json",
    "split_name",
    "split_reader",
    "stem",
    "volumes",
    "walk",
]

NIFTI = re.compile(r"\.nii(\.gz)?$", re.I)
# Last words of file names, in lower case. Other last words belong to the id of the case.
IMAGE_WORDS = frozenset(
    "t1w t1 t1c t1ce t1gd t1n t2w t2 t2f t2star t2starw flair pd pdw dwi adc b0 b1000 swi bold "
    "cbf mra tof ct cta cbct pet suv us mr mri image img volume".split()
)
LABEL_WORDS = frozenset(
    "mask label labels seg segm segmentation dseg lesion lesions roi gt truth tumor tumour "
    "organs annotation".split()
)
# The label of what goes with lesions and is none: oedema, mass effect, atrophy.
ASSOCIATED_WORD = "associated"
# Helpers that are neither image nor truth; votes are a count of readers, and no label map.
AUXILIARY_WORDS = frozenset("brainmask brain_mask foreground bodymask bet votes".split())
# Folders beside each other that hold the images and the labels of all cases.
IMAGE_FOLDERS = frozenset("image images img imgs volumes".split())
LABEL_FOLDERS = frozenset("label labels mask masks segmentations annotations".split())
# One of several people who labelled an examination: `reader-1`, `rater2`.
READER = re.compile(
    r"(?:^|[_-])(?:reader|rater|annotator|observer)(?:-([A-Za-z0-9]+)|(\d+))(?=[_-]|$)", re.I
)
# Folders that are looked at to recognise a data set: the folders that hold its parts come first,
# and all of its cases are alike.
GLANCE = 400


def stem(path: Path) -> str:
    """The name without .nii or .nii.gz."""
    return NIFTI.sub("", path.name)


def split_name(stem: str) -> tuple[str, str]:
    """Case and channel: `ms_p07_T1w` -> (`ms_p07`, `T1w`), `T1w` -> (``, `T1w`).

    A last word that is none of ours stays in the id, and the channel is `image`.
    """
    case, _, word = stem.rpartition("_")
    known = IMAGE_WORDS | LABEL_WORDS | AUXILIARY_WORDS | {ASSOCIATED_WORD}
    return (case, word) if word.lower() in known else (stem, "image")


def split_reader(name: str) -> tuple[str, str | None]:
    """The name without its reader, and the reader: `p7_reader-1_mask` -> (`p7_mask`, `1`)."""
    match = READER.search(name)
    if match is None:
        return name, None
    rest = (name[: match.start()] + name[match.end() :]).lstrip("_-")
    return rest, match[1] or match[2]


def in_order(readers: Mapping[str, Path]) -> dict[str, Path]:
    """Readers by name, numbers by size."""
    names = sorted(readers, key=lambda n: (not n.isdecimal(), int(n) if n.isdecimal() else 0, n))
    return {name: readers[name] for name in names}


def label_names(description: Mapping[str, Any]) -> dict[int, str]:
    """What the label values of a `dataset.json` stand for, without the background.

    nnU-Net writes `{"tumour": 1}`, the Decathlon `{"1": "tumour"}`; regions, which are lists of
    values, have no name of one value.
    """
    labels = description.get("labels")
    found = {}
    for key, value in labels.items() if isinstance(labels, dict) else ():
        name, number = (value, key) if isinstance(value, str) else (key, value)
        text = str(number)
        if isinstance(number, int | str) and text.isdecimal() and 0 < int(text) <= 255:
            found[int(text)] = str(name)
    return dict(sorted(found.items()))


def volumes(folder: Path) -> list[Path]:
    """The NIfTI files of a folder, whatever they turn out to be."""
    if not folder.is_dir():
        return []
    names = sorted(n for n in os.listdir(folder) if NIFTI.search(n) and not n.startswith("."))
    return [folder / n for n in names if not (folder / n).is_dir()]


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
    """All NIfTI files below a folder, except for those in folders of the names in `hidden`."""
    for where, inner, files in os.walk(base):
        inner[:] = sorted(f for f in inner if not f.startswith(".") and f not in hidden)
        yield from (Path(where) / f for f in sorted(files) if NIFTI.search(f))


def below(base: Path, name: Any) -> Path:
    """The path that a list or table names, refused when it leaves the folder of the list.

    Raises:
        DataError: no path, or one that leaves the folder, also through links
    """
    if not isinstance(name, str) or "\0" in name:
        raise DataError(f"expected a path, got {name!r}.")
    path = Path(os.path.realpath(base / name))
    if not path.is_relative_to(os.path.realpath(base)):
        raise DataError(f"the path {name!r} leaves {base}; keep the files below the datalist.")
    return path


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: not there, no JSON, no object
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a data set description, it is not there.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}.")
    return content


def _inner(folder: Path) -> Iterator[Path]:
    """The folders in a folder; a hundred thousand files beside them cost one listing, no more."""
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
    except OSError as error:
        reason = error.strerror or error
        raise DataError(f"{folder}: cannot be listed ({reason}); check its rights.") from error
    return (folder / name for name in names)
