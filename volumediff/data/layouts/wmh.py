"""WMH segmentation challenge: white matter hyperintensities in FLAIR and T1 of several scanners.

    [training/]Utrecht/0/{orig,pre}/{FLAIR,T1,3DT1}.nii.gz, Utrecht/0/wmh.nii.gz

Label 1 is a hyperintensity, 2 other pathology: the challenge does not evaluate there, and here it
is neither lesion nor healthy.

References:
    Kuijf et al. (2019), Standardized Assessment of Automatic Segmentation of White Matter
    Hyperintensities and Results of the WMH Segmentation Challenge, arXiv:1904.00682
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from volumediff.data.cases import Case
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders, stem, volumes

__all__ = ["WMH"]

# Part, city, scanner, case.
DEPTH = 4
SPLITS = {"training": "train", "test": "test"}
CHANNELS = ("FLAIR", "T1", "3DT1")
LESION, OTHER = 1, 2


@dataclass(frozen=True)
class WMH(Layout):
    """One case per numbered folder; the folder above it names the scanner, the site.

    Arguments:
        images: the folder to read: `pre` is corrected for bias fields, `orig` is not
    """

    images: Literal["pre", "orig"] = "pre"

    def recognises(self, root: Path) -> bool:
        return any(_is_case(folder) for folder in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        cases = []
        for folder in folders(root, DEPTH):
            if not _is_case(folder):
                continue
            images = {stem(p): p for p in volumes(folder / self.images) if stem(p) in CHANNELS}
            labels = [p for p in volumes(folder) if stem(p) == "wmh"]
            name = f"{folder.parent.name}_{folder.name}"
            attributes: dict[str, str | float] = {"site": folder.parent.name, "group": "sick"}
            for part in (root.name, *folder.relative_to(root).parts):
                if part.lower() in SPLITS:
                    attributes["split"] = SPLITS[part.lower()]
            label = labels[0] if labels else None
            cases.append(Case(name, name, images, label, attributes, (LESION,), (OTHER,)))
        return cases, []


def _is_case(folder: Path) -> bool:
    return folder.name.isdigit() and any(
        (folder / part / "FLAIR.nii.gz").is_file() for part in ("orig", "pre")
    )
