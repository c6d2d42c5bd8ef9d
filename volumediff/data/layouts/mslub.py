"""MSLUB (3D-MR-MS): multiple sclerosis in four MR contrasts, consensus of three raters.

    patient01/patient01_{T1W,T1WKS,T2W,FLAIR}.nii.gz, ..._consensus_gt.nii.gz, ..._brainmask.nii.gz

A mirror leaves the patient out of the names of the files; both are read. The longitudinal part
marks changes, not lesions, and is not.

References:
    Lesjak et al. (2018), A Novel Public MR Image Dataset of Multiple Sclerosis Patients With
    Lesion Segmentations Based on Multi-rater Consensus, doi:10.1007/s12021-017-9348-7
"""

import re
from dataclasses import dataclass
from pathlib import Path

from volumediff.data.cases import Case
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders, stem, volumes

__all__ = ["MSLUB"]

PATIENT = re.compile(r"patient\d+")
CHANNELS = ("T1W", "T1WKS", "T2W", "FLAIR")
TRUTH = "consensus_gt"
DEPTH = 3


@dataclass(frozen=True)
class MSLUB(Layout):
    """One case per patient; T1WKS is T1 with contrast agent."""

    def recognises(self, root: Path) -> bool:
        return any(TRUTH in _files_of(folder) for folder in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        cases = []
        for folder in folders(root, DEPTH):
            files = _files_of(folder)
            images = {name: files[name] for name in CHANNELS if name in files}
            if images or TRUTH in files:
                attributes: dict[str, str | float] = {"group": "sick"}
                label = files.get(TRUTH)
                cases.append(Case(folder.name, folder.name, images, label, attributes))
        return cases, []


def _files_of(folder: Path) -> dict[str, Path]:
    if not PATIENT.fullmatch(folder.name):
        return {}
    return {stem(p).removeprefix(f"{folder.name}_"): p for p in volumes(folder)}
