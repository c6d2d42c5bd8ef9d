"""Plain folders: files `<case>_<channel>.nii.gz`, or one folder per case."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.data.layouts._base import ANYTHING, Found, Layout
from volumediff.data.layouts._files import (
    ASSOCIATED_WORD,
    AUXILIARY_WORDS,
    LABEL_WORDS,
    split_name,
    stem,
    volumes,
)
from volumediff.data.layouts._tables import described, participants
from volumediff.errors import DataError

__all__ = ["Folder"]


@dataclass(frozen=True)
class Folder(Layout):
    """Files `<case>_<channel>.nii.gz` in one folder, or one folder per case.

    A name that ends with a label word (mask, seg, ...) is the case's label, one that ends with
    `associated` its label of associated changes; one that ends with no such word and no channel
    is a case with the one channel `image`. Names that are nothing but such a word (T1w.nii.gz,
    mask.nii.gz) belong to the case that the folder is named after. A case folder may also hold
    one DICOM series.
    """

    rank: ClassVar[int] = ANYTHING

    def recognises(self, root: Path) -> bool:
        return root.is_dir()

    def read(self, root: Path) -> Found:
        if root.is_file():
            raise DataError(f"{root}: expected a folder of volumes, got a file; give its folder.")
        groups: dict[str, list[tuple[str, Path]]] = defaultdict(list)
        for path in volumes(root):
            case, word = split_name(stem(path))
            groups[case or root.absolute().name].append((word, path))
        for inner in sorted(
            p for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")
        ):
            for path in volumes(inner):
                name = stem(path)
                if name.lower().startswith((inner.name.lower() + "_", inner.name.lower() + "-")):
                    name = name[len(inner.name) + 1 :]
                groups[inner.name].append((name, path))
            if inner.name not in groups and _holds_dicom(inner):
                groups[inner.name].append(("image", inner))
        table, (cases, problems) = participants(root), _grouped(groups)
        return [described(case, table) for case in cases], problems


def _grouped(groups: dict[str, list[tuple[str, Path]]]) -> Found:
    cases, problems = [], []
    for case in sorted(groups):
        images: dict[str, Path] = {}
        labels: dict[str, Path] = {}
        message = None
        for word, path in groups[case]:
            role = _role(word)
            if role == "auxiliary":
                continue
            taken, name = (images, word) if role == "image" else (labels, role)
            if name in taken:
                message = f"{path.name} and {taken[name].name} are both its {role}; keep one."
            taken.setdefault(name, path)
        if message:
            problems.append(Problem(case, message))
        elif images or labels:
            label, associated = labels.get("label"), labels.get("associated")
            cases.append(Case(case, patient_of(case), images, label, associated=associated))
    return cases, problems


def _role(word: str) -> Literal["image", "label", "associated", "auxiliary"]:
    word = word.lower()
    last = re.split(r"[_-]", word)[-1]
    if word in AUXILIARY_WORDS or last in AUXILIARY_WORDS:
        return "auxiliary"
    if last == ASSOCIATED_WORD:
        return "associated"
    return "label" if last in LABEL_WORDS else "image"


def _holds_dicom(folder: Path) -> bool:
    from volumediff.data.dicom import is_dicom

    return any(is_dicom(p) for p in sorted(folder.iterdir())[:20])
