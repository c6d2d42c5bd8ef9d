"""Longitudinal MS lesion challenge (ISBI 2015): four MR contrasts at four to six time points.

    training01/preprocessed/training01_01_{flair,mprage,pd,t2}_pp.nii
    training01/masks/training01_01_mask{1,2}.nii

References:
    Carass et al. (2017), Longitudinal multiple sclerosis lesion segmentation: Resource and
    challenge, doi:10.1016/j.neuroimage.2016.12.064
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from volumediff.data.cases import Case, Problem
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders, stem, volumes

__all__ = ["MSSEG2015"]

PATIENT = re.compile(r"(training|test)\d+")
IMAGE = re.compile(r"((?:training|test)\d+_(\d+))_(flair|mprage|pd|t2)_pp")
RATERS = ("1", "2")
DEPTH = 2


@dataclass(frozen=True)
class MSSEG2015(Layout):
    """One case per time point, on the preprocessed grid, on which the masks are.

    Arguments:
        rater: whose mask is the truth; the two differ, and there is no consensus. Both are readers
    """

    rater: Literal[1, 2] = 1

    def recognises(self, root: Path) -> bool:
        return any(_is_patient(folder) for folder in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        cases, problems = [], []
        for folder in folders(root, DEPTH):
            if not _is_patient(folder):
                continue
            images: dict[str, dict[str, Path]] = defaultdict(dict)
            times: dict[str, float] = {}
            for path in volumes(folder / "preprocessed"):
                if match := IMAGE.fullmatch(stem(path)):
                    images[match[1]][match[3]] = path
                    times[match[1]] = float(match[2])
            masks = {stem(p): p for p in volumes(folder / "masks")}
            split = "train" if folder.name.startswith("training") else "test"
            for case, found in images.items():
                label = masks.get(f"{case}_mask{self.rater}")
                if label is None and split == "train":
                    text = f"has no {folder.name}/masks/{case}_mask{self.rater}.nii; add it."
                    problems.append(Problem(case, text, files=tuple(found.values())))
                    continue
                attributes: dict[str, str | float] = {
                    "group": "sick",
                    "split": split,
                    "timepoint": times[case],
                }
                readers = {r: masks[n] for r in RATERS if (n := f"{case}_mask{r}") in masks}
                labels = readers if len(readers) > 1 else {}
                cases.append(Case(case, folder.name, found, label, attributes, labels=labels))
        return cases, problems


def _is_patient(folder: Path) -> bool:
    if not PATIENT.fullmatch(folder.name):
        return False
    return any(IMAGE.fullmatch(stem(p)) for p in volumes(folder / "preprocessed"))
