"""Plain folders: files `<case>_<channel>.nii.gz`, or one folder per case."""

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.data.layouts._base import ANYTHING, Found, Layout
from volumediff.data.layouts._files import (
    ASSOCIATED_WORD,
    AUXILIARY_WORDS,
    IMAGE_FOLDERS,
    LABEL_FOLDERS,
    LABEL_WORDS,
    in_order,
    split_name,
    split_reader,
    stem,
    volumes,
)
from volumediff.data.layouts._tables import described, participants
from volumediff.errors import DataError

__all__ = ["Folder"]


Role = Literal["image", "label", "associated", "auxiliary"]
# What a consensus of several readers may be called.
CONSENSUS = LABEL_WORDS | {"", "consensus", "majority", "staple"}
# A number of two digits or more names a patient rather than a channel: p07, not echo2.
NUMBER = re.compile(r"\d{2,}")
# What BIDS tells images of one session apart with.
ENTITY = re.compile(r"(run|acq|echo|dir|ses|rec|part)-", re.I)


@dataclass(frozen=True)
class _File:
    """A file of a case.

    Arguments:
        role: what it is
        name: of the channel, for images
        owner: what its name says whose it is, without word and reader; empty if nothing
        reader: who labelled, if the name says so
    """

    path: Path
    role: Role
    name: str
    owner: str
    reader: str | None = None


@dataclass(frozen=True)
class Folder(Layout):
    """Files `<case>_<channel>.nii.gz` in one folder, or one folder per case.

    A name that ends with a label word (mask, seg, ...) is the case's label, one that ends with
    `associated` its label of associated changes; one that ends with no such word and no channel
    is a case with the one channel `image`. Names that are nothing but such a word (T1w.nii.gz,
    mask.nii.gz) belong to the case that the folder is named after. A case folder may also hold
    one DICOM series.

    Labels that name a `reader-<n>` are those of several readers, and one without is their
    consensus. The files of all cases may also lie in two folders, `images/` and `labels/`; what
    lies in `labels/` is a label whatever it is called.
    """

    rank: ClassVar[int] = ANYTHING

    def recognises(self, root: Path) -> bool:
        return root.is_dir()

    def read(self, root: Path) -> Found:
        if root.is_file():
            raise DataError(f"{root}: expected a folder of volumes, got a file; give its folder.")
        groups: dict[str, list[_File]] = defaultdict(list)
        for path in volumes(root):
            case, file = _flat(path)
            groups[case or root.absolute().name].append(file)
        own: dict[str, list[_File]] = {}
        for inner in sorted(
            p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")
        ):
            if inner.name.lower() in IMAGE_FOLDERS | LABEL_FOLDERS:
                for path in volumes(inner):
                    case, file = _flat(path, labels=inner.name.lower() in LABEL_FOLDERS)
                    groups[case or root.absolute().name].append(file)
                continue
            own[inner.name] = [_inside(path, inner.name) for path in volumes(inner)]
            if not own[inner.name] and inner.name not in groups and _holds_dicom(inner):
                own[inner.name] = [_File(inner, "image", "image", "")]
        for name, files in own.items():
            groups[name] += files
        table, (cases, problems) = participants(root), _grouped(groups, _several(own))
        return [described(case, table) for case in cases], problems


def _flat(path: Path, *, labels: bool = False) -> tuple[str, _File]:
    """The case of a file that lies beside those of other cases, and what it is of it.

    Arguments:
        labels: whether it lies in a folder of labels
    """
    case, word = split_name(stem(path))
    role = _role(word)
    if labels and role == "image":
        role = "label"
    reader = None
    if role == "label":
        case, reader = split_reader(case)
    return case, _File(path, role, word, case, reader)


def _inside(path: Path, case: str) -> _File:
    """What a file in the folder of a case is."""
    name = stem(path)
    if name.lower().startswith((case.lower() + "_", case.lower() + "-")):
        name = name[len(case) + 1 :]
    role, owner, reader = _role(name), split_name(name)[0], None
    if role == "label":
        owner, reader = split_reader(owner)
    return _File(path, role, name, owner, reader)


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
        for file in groups[case]:
            if file.role == "auxiliary":
                continue
            taken, name = (images, file.name) if file.role == "image" else (labels, file.role)
            what = file.role
            if file.reader is not None:
                taken, name, what = readers, file.reader, f"label of reader {file.reader}"
            if name in taken and message is None:
                message = f"{file.path.name} and {taken[name].name} are both its {what}; keep one."
            taken.setdefault(name, file.path)
        if message:
            problems.append(Problem(case, message))
        elif images or labels or readers:
            label, associated = labels.get("label"), labels.get("associated")
            patient, ordered = patient_of(case), in_order(readers)
            cases.append(Case(case, patient, images, label, associated=associated, labels=ordered))
    return cases, problems


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


def _role(word: str) -> Role:
    word = word.lower()
    last = re.split(r"[_-]", word)[-1]
    if word in AUXILIARY_WORDS or last in AUXILIARY_WORDS:
        return "auxiliary"
    if last == ASSOCIATED_WORD:
        return "associated"
    return "label" if last in LABEL_WORDS else "image"


def _holds_dicom(folder: Path) -> bool:
    from volumediff.data.dicom_files.recognition import is_dicom

    return any(is_dicom(p) for p in sorted(folder.iterdir())[:20])
