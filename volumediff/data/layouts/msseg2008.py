"""MS lesion segmentation challenge of 2008: three MR contrasts of two hospitals, as NRRD.

    CHB_train_Part1/CHB_train_Case01/CHB_train_Case01_{FLAIR,T1,T2,lesion}.nhdr (and .raw)
    UNC_train_lesion_byCHB/UNC_train_Case01/UNC_train_Case01_lesion_byCHB.nhdr

The hospital that scanned, CHB or UNC, is the site. CHB marked the lesions of both, UNC of its own.

References:
    Styner et al. (2008), 3D Segmentation in the Clinic: A Grand Challenge II: MS lesion
    segmentation, MIDAS Journal
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from volumediff.data.cases import Case, Problem
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders
from volumediff.data.layouts._roles import in_order

__all__ = ["MSSEG2008"]

CASE = re.compile(r"(CHB|UNC)_(train|test\d)_Case\d+")
CHANNELS = ("FLAIR", "T1", "T2")
ENDINGS = (".nhdr", ".nrrd", ".nii.gz", ".nii")
DEPTH = 3


@dataclass(frozen=True)
class MSSEG2008(Layout):
    """One case per patient.

    Arguments:
        rater: whose lesions count for the volumes of UNC; those of CHB are by CHB alone. Both are
            readers of a volume of UNC
    """

    rater: Literal["CHB", "UNC"] = "UNC"

    def recognises(self, root: Path) -> bool:
        return any(CASE.fullmatch(folder.name) for folder in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        files: dict[str, dict[str, Path]] = {}
        for folder in folders(root, DEPTH):
            if CASE.fullmatch(folder.name):
                known = files.setdefault(folder.name, {})
                for path in sorted(folder.iterdir()):
                    ending = next((e for e in ENDINGS if path.name.endswith(e)), None)
                    if ending and path.name.startswith(f"{folder.name}_"):
                        known[path.name[len(folder.name) + 1 : -len(ending)]] = path
        cases, problems = [], []
        for name, known in files.items():
            site, part = CASE.fullmatch(name).groups()
            images = {channel: known[channel] for channel in CHANNELS if channel in known}
            other = self.rater == "CHB" and site == "UNC"
            label = known.get("lesion_byCHB" if other else "lesion")
            split = "train" if part == "train" else "test"
            if split == "train" and label is None:
                which = "lesion_byCHB" if other else "lesion"
                text = f"has no {name}_{which}; unpack that part, too."
                problems.append(Problem(name, text, files=tuple(known.values())))
                continue
            attributes: dict[str, str | float] = {"site": site, "group": "sick", "split": split}
            by_chb = known.get("lesion" if site == "CHB" else "lesion_byCHB")
            marked = {site: known.get("lesion"), "CHB": by_chb}
            readers = {reader: path for reader, path in marked.items() if path is not None}
            labels = in_order(readers) if len(readers) > 1 else {}
            cases.append(Case(name, name, images, label, attributes, labels=labels))
        return cases, problems
