"""MSSEG 2016: MS lesions in five MR contrasts of four scanners, seven raters and a consensus.

    Training/Center_01/Patient_01/Preprocessed_Data/{FLAIR,T1,T2,DP,GADO}_preprocessed.nii.gz
    Training/Center_01/Patient_01/Masks/{Consensus,ManualSegmentation_1..7}.nii.gz

References:
    Commowick et al. (2021), Multiple sclerosis lesions segmentation from multiple experts: The
    MICCAI 2016 challenge dataset, doi:10.1016/j.neuroimage.2021.118589
"""

import re
from dataclasses import dataclass
from pathlib import Path

from volumediff.data.cases import Case, Problem
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders, stem, volumes
from volumediff.data.layouts._roles import in_order

__all__ = ["MSSEG2016"]

PATIENT = re.compile(r"Patient_\d+")
RATER = re.compile(r"ManualSegmentation_(\d+)")
SPLITS = {"training": "train", "testing": "test"}
# A wrapper, the part, the centre.
DEPTH = 4


@dataclass(frozen=True)
class MSSEG2016(Layout):
    """One case per patient; patients are numbered anew in each part and centre.

    Arguments:
        rater: whose lesions are the label, 1 to 7; None takes the consensus. All raters that are
            there are the readers of a case
    """

    rater: int | None = None

    def __post_init__(self) -> None:
        if self.rater is not None and not 1 <= self.rater <= 7:
            raise ValueError(f"MSSEG2016 takes rater from 1 to 7, got {self.rater}.")

    def recognises(self, root: Path) -> bool:
        return any(_is_patient(folder) for folder in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        cases, problems = [], []
        truth = "Consensus" if self.rater is None else f"ManualSegmentation_{self.rater}"
        for folder in folders(root, DEPTH):
            if not _is_patient(folder):
                continue
            above = (root.parent.name, root.name, *folder.relative_to(root).parts[:-1])
            part = next((p for p in reversed(above) if p.lower() in SPLITS), "")
            name = "_".join(filter(None, (part, folder.parent.name, folder.name)))
            images = {
                stem(p).removesuffix("_preprocessed"): p
                for p in volumes(folder / "Preprocessed_Data")
                if stem(p).endswith("_preprocessed")
            }
            masks = {stem(p): p for p in volumes(folder / "Masks")}
            if masks and truth not in masks:
                text = f"has no Masks/{truth}.nii.gz; it has {', '.join(masks)}."
                problems.append(Problem(name, text, files=tuple(masks.values())))
                continue
            attributes: dict[str, str | float] = {"site": folder.parent.name, "group": "sick"}
            if part:
                attributes["split"] = SPLITS[part.lower()]
            raters = {m[1]: p for word, p in masks.items() if (m := RATER.fullmatch(word))}
            label, labels = masks.get(truth), in_order(raters)
            cases.append(Case(name, name, images, label, attributes, labels=labels))
        return cases, problems


def _is_patient(folder: Path) -> bool:
    return bool(PATIENT.fullmatch(folder.name)) and (folder / "Preprocessed_Data").is_dir()
