"""Plain folders: files `<case>_<channel>.nii.gz`, or one folder per case."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.data.dicom_folders import series_folders
from volumediff.data.layouts._base import ANYTHING, Found, Layout
from volumediff.data.layouts._files import ASIDE, IMAGE_FOLDERS, LABEL_FOLDERS, stem, volumes
from volumediff.data.layouts._participants import PARTICIPANTS, with_participants
from volumediff.data.layouts._roles import (
    LABEL_WORDS,
    Role,
    in_order,
    marked,
    parsed,
    split_name,
    without_copy_words,
)
from volumediff.errors import DataError

__all__ = ["Folder"]


# What a consensus of several readers may be called.
CONSENSUS = LABEL_WORDS | {"", "consensus", "majority", "staple"}
# A number of two digits or more names a patient rather than a channel: p07, not echo2.
NUMBER = re.compile(r"\d{2,}")
# Folders of the images or the labels of several cases.
SHARED = IMAGE_FOLDERS | LABEL_FOLDERS
# What BIDS tells images of one session apart with.
ENTITY = re.compile(r"(run|acq|echo|dir|ses|rec|part)-", re.I)


@dataclass(frozen=True)
class _File:
    """A file of a case.

    Arguments:
        role: what it is
        name: of the channel, for images
        owners: what its name says whose it is, the most likely last; empty text if nothing
        reader: who labelled, if the name says so
        is_copy: whether it is an image without its skull
    """

    path: Path
    role: Role
    name: str
    owners: tuple[str, ...]
    reader: str | None = None
    is_copy: bool = False

    @property
    def owner(self) -> str:
        return self.owners[-1]


@dataclass(frozen=True)
class Folder(Layout):
    """Files `<case>_<channel>.nii.gz` in one folder, or one folder per case.

    A name that ends with a label word (mask, seg, ...) is the case's label, one that ends with
    `associated` its label of associated changes; one that ends with no such word and no channel
    is a case with the one channel `image`. Names that are nothing but such a word (T1w.nii.gz,
    mask.nii.gz) belong to the case that the folder is named after. A case folder may also hold
    one DICOM series, or folders in folders, such as a patient's studies: every DICOM series, or
    else every folder with volumes, is a case then, and all of them are of the patient that the
    outermost folder is named after. Folders in them that are named after channels, with one
    volume each, are the channels of one case.

    Masks of the brain, the head or the body are no labels, and an image without skull is a copy
    where the image with its skull lies beside it.

    Labels that name a `reader-<n>` are those of several readers, and one without is their
    consensus. The files of all cases may also lie in two folders, `images/` and `labels/`; what
    lies in `labels/` is a label whatever it is called.
    """

    rank: ClassVar[int] = ANYTHING
    tables: ClassVar[tuple[str, ...]] = (PARTICIPANTS,)

    def recognises(self, root: Path) -> bool:
        return root.is_dir()

    def read(self, root: Path) -> Found:
        if root.is_file():
            raise DataError(f"{root}: expected a folder of volumes, got a file; give its folder.")
        inner = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
        shared = [p for p in inner if p.name.lower() in IMAGE_FOLDERS | LABEL_FOLDERS]
        beside = [_flat(path) for path in volumes(root)]
        for folder in shared:
            labels = folder.name.lower() in LABEL_FOLDERS
            beside += [_flat(path, labels=labels) for path in volumes(folder)]
        groups, left = _by_case(beside, root.absolute().name)
        own: dict[str, list[_File]] = {}
        patients: dict[str, str] = {}
        for folder in (p for p in inner if p not in shared):
            own[folder.name] = [_inside(path, folder.name) for path in volumes(folder)]
            if own[folder.name] or folder.name in groups:
                continue
            for case, files in _nested(root, folder, volumes_too=not beside).items():
                own[case] = files
                patients[case] = patient_of(folder.name)
        for name, files in own.items():
            groups[name] += files
        cases, problems = _grouped(groups, _several(own))
        cases = [replace(c, patient=patients.get(c.id, c.patient)) for c in cases]
        described, unmatched = with_participants(root, cases)
        return described, [*left, *problems, *unmatched]


def _flat(path: Path, *, labels: bool = False) -> _File:
    """What a file is that lies beside those of other cases.

    Arguments:
        labels: whether it lies in a folder of labels
    """
    name = parsed(stem(path))
    if labels and name.role == "image":
        name = marked(stem(path))
    return _File(path, name.role, name.channel, name.owners, name.reader, name.is_copy)


def _by_case(files: Sequence[_File], root: str) -> tuple[dict[str, list[_File]], list[Problem]]:
    """The files of every case, and images that other programs have made of one of them.

    Arguments:
        root: the case of files whose names say nothing
    """
    groups: dict[str, list[_File]] = defaultdict(list)
    problems = []
    images = {stem(f.path): f for f in files if f.role == "image" and f.name != "image"}
    for file in files:
        source = _source_of(file, images) if file.role == "image" else None
        if source is not None:
            text = (
                f"{file.path.name} begins with the name of {source.path.name}, an image of the "
                "same person, and is left out; give each case a folder if it is another image."
            )
            problems.append(Problem(source.owner or root, text, "warning", (file.path,)))
        elif file.role == "image":
            groups[file.owner or root].append(file)
    known = set(groups)
    for file in files:
        if file.role != "image":
            owner = next((o for o in file.owners if o in known), file.owner)
            groups[owner or root].append(file)
    return groups, problems


def _source_of(file: _File, images: Mapping[str, _File]) -> _File | None:
    """The image of a channel whose whole name this one's name goes on from, such as p1_T1w of
    p1_T1w_pve_0."""
    if file.name != "image" or file.is_copy:
        return None
    parts = stem(file.path).split("_")
    shorter = ("_".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
    return next((images[name] for name in shorter if name in images), None)


def _inside(path: Path, case: str) -> _File:
    """What a file in the folder of a case is."""
    name = stem(path)
    if name.lower().startswith((case.lower() + "_", case.lower() + "-")):
        name = name[len(case) + 1 :]
    known = parsed(name)
    if known.role == "image":
        channel, is_copy = without_copy_words(name)
        return _File(path, "image", channel, (split_name(channel)[0],), None, is_copy)
    return _File(path, known.role, name, known.owners, known.reader)


def _nested(root: Path, patient: Path, *, volumes_too: bool) -> dict[str, list[_File]]:
    """The files of every case below the folder of a patient that holds none itself.

    Arguments:
        volumes_too: whether volumes are looked for where there is no DICOM; not in a data set
            whose cases lie beside each other, which another depth is no part of
    """
    found: dict[str, list[_File]] = {}
    for series in series_folders(patient):
        case = "_".join(series.relative_to(root).parts)
        found[case] = [_File(series, "image", "image", ("",))]
    if found or not volumes_too or patient.name in ASIDE:
        return found
    for where, inner, names in os.walk(patient):
        inner[:] = sorted(n for n in inner if not n.startswith(".") and n.lower() not in SHARED)
        here = volumes(Path(where)) if names else []
        parts = Path(where).relative_to(root).parts
        name = parsed(parts[-1])
        if len(here) == 1 and not name.owner and name.role in ("image", "label"):
            own = [_File(here[0], name.role, name.channel, ("",))]  # study/T1w/scan.nii.gz
            parts = parts[:-1]
        else:
            begins = [p for p in here if p.name.lower().startswith(patient.name.lower())]
            own = [_inside(p, patient.name if p in begins else parts[-1]) for p in here]
        if own:
            found.setdefault("_".join(parts), []).extend(own)
    return found


def _several(folders: Mapping[str, Sequence[_File]]) -> dict[str, str]:
    """Folders that hold the images of several cases, and why: names that differ in a number.

    A name that other folders have, too, is that of a channel.
    """
    often = Counter(file.name for files in folders.values() for file in files)
    found = {}
    for folder, files in folders.items():
        alike: dict[tuple[str, str], list[_File]] = defaultdict(list)
        for file in files:
            known = ENTITY.match(file.owner) or not NUMBER.search(file.owner)
            if file.role == "image" and often[file.name] == 1 and not known:
                word = split_name(file.name)[1].lower()
                alike[NUMBER.sub("#", file.owner), word].append(file)
        group = next((files for files in alike.values() if len(files) > 1), None)
        if group is not None:
            one, two = group[0].path.name, group[1].path.name
            found[folder] = (
                f"{one} and {two} look like images of two cases in one folder; give each case a "
                "folder, or put the files of all cases into `images` and `labels`."
            )
    return found


def _grouped(groups: Mapping[str, Sequence[_File]], mixed: Mapping[str, str]) -> Found:
    cases, problems = [], []
    for case in sorted(groups):
        images: dict[str, Path] = {}
        labels: dict[str, Path] = {}
        readers: dict[str, Path] = {}
        message = mixed.get(case) or _apart(groups[case])
        copies = _copies(groups[case])
        if copies:
            shown = ", ".join(file.path.name for file in copies)
            text = f"has the same image with its skull, too, and {shown} is not used."
            problems.append(Problem(case, text, "info", tuple(f.path for f in copies)))
        for file in groups[case]:
            if file.role == "auxiliary" or file in copies:
                continue
            taken, name = (images, file.name) if file.role == "image" else (labels, file.role)
            what = file.role
            if file.reader is not None:
                taken, name, what = readers, file.reader, f"label of reader {file.reader}"
            if name in taken and message is None:
                message = f"{file.path.name} and {taken[name].name} are both its {what}; keep one."
            taken.setdefault(name, file.path)
        if message:
            problems.append(Problem(case, message, files=tuple(f.path for f in groups[case])))
        elif images or labels or readers:
            label, associated = labels.get("label"), labels.get("associated")
            patient, ordered = patient_of(case), in_order(readers)
            cases.append(Case(case, patient, images, label, associated=associated, labels=ordered))
    return cases, problems


def _copies(files: Sequence[_File]) -> list[_File]:
    """Images without skull of channels that are there with it."""
    whole = {file.name for file in files if file.role == "image" and not file.is_copy}
    return [
        file
        for file in files
        if file.is_copy and (file.name in whole or (file.name == "image" and whole))
    ]


def _apart(files: Sequence[_File]) -> str | None:
    """Why labels belong to different cases, although they lie in one folder; None if they do not.

    Readers of one examination label it under one name, and two names are two patients.
    """
    marked = [file for file in files if file.role == "label"]
    readers = [file for file in marked if file.reader is not None]
    for file in marked if readers else ():
        plain = file.reader is None and file.owner.lower() in CONSENSUS
        if file.owner != readers[0].owner and not plain:
            return (
                f"{file.path.name} and {readers[0].path.name} are labels of two cases in one "
                "folder; give each case a folder, or put the files of all cases into `images` "
                "and `labels`."
            )
    return None
