"""OCT2017: retinal OCT slices of four classes.

    [OCT2017/]{train,val,test}/{NORMAL,CNV,DME,DRUSEN}/NORMAL-1001666-1.jpeg

The middle number is the patient, who may be in several classes, and in several parts.

References:
    Kermany et al. (2018), Identifying Medical Diagnoses and Treatable Diseases by Image-Based Deep
    Learning, doi:10.1016/j.cell.2018.02.010
"""

import re
from dataclasses import dataclass
from pathlib import Path

from volumediff.data.cases import Case
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders

__all__ = ["OCT2017"]

NAME = re.compile(r"(CNV|DME|DRUSEN|NORMAL)-(\d+)-\d+\.jpe?g", re.I)
SPLITS = {"train": "train", "val": "validation", "test": "test"}
CLASSES = frozenset({"CNV", "DME", "DRUSEN", "NORMAL"})
DEPTH = 3


@dataclass(frozen=True)
class OCT2017(Layout):
    """One case per picture; `class` is its folder, and NORMAL is healthy."""

    def recognises(self, root: Path) -> bool:
        return any(_is_class(folder) for folder in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        cases = []
        for folder in folders(root, DEPTH):
            if not _is_class(folder):
                continue
            part = folder.absolute().parent.name
            for path in sorted(folder.iterdir()):
                match = NAME.fullmatch(path.name)
                if match is None:
                    continue
                known: dict[str, str | float] = {
                    "class": folder.name,
                    "group": "healthy" if folder.name == "NORMAL" else "sick",
                    "split": SPLITS[part],
                }
                case = f"{part}_{path.stem}"
                cases.append(Case(case, match[2], {"image": path}, None, known))
        return cases, []


def _is_class(folder: Path) -> bool:
    return folder.name in CLASSES and folder.absolute().parent.name in SPLITS
