"""ATLAS v2.0: T1w volumes after stroke with traced lesions, in MNI space.

    Training/R001/sub-r001s001/ses-1/anat/sub-r001s001_ses-1_space-MNI152NLin2009aSym_T1w.nii.gz
                                          ..._label-L_desc-T1lesion_mask.nii.gz

It resembles BIDS, but its names are those of the challenge, and its site is in the id.

References:
    Liew et al. (2022), A large, curated, open-source stroke neuroimaging dataset to improve lesion
    segmentation algorithms, doi:10.1038/s41597-022-01401-7
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from volumediff.data.cases import Case, Problem
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders, stem, walk

__all__ = ["ATLAS"]

SUBJECT = re.compile(r"sub-(r\d{3})s\d{3}")
NAME = re.compile(r"(sub-(r\d{3})s\d{3})(_ses-[A-Za-z0-9]+)?_(.+)")
# Part, site, and a wrapper.
DEPTH = 4
SPLITS = {"training": "train", "testing": "test"}


@dataclass(frozen=True)
class ATLAS(Layout):
    """One case per session; the site `r001` and the part (training or testing) are attributes."""

    def recognises(self, root: Path) -> bool:
        return any(SUBJECT.fullmatch(f.name) for f in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        cases, problems = [], []
        for folder in folders(root, DEPTH):
            if SUBJECT.fullmatch(folder.name):
                found, wrong = _subject(root, folder)
                cases += found
                problems += wrong
        return cases, problems


def _subject(root: Path, folder: Path) -> Found:
    images: dict[str, dict[str, Path]] = defaultdict(dict)
    labels: dict[str, list[Path]] = defaultdict(list)
    for path in walk(folder):
        match = NAME.fullmatch(stem(path))
        if match is None:
            continue
        case, rest = match[1] + (match[3] or ""), match[4]
        if rest.endswith("T1lesion_mask"):
            labels[case].append(path)
        elif rest.endswith("T1w"):
            images[case]["T1w"] = path
    cases, problems = [], []
    parts = [root.name.lower(), *(part.lower() for part in folder.relative_to(root).parts)]
    split = next((SPLITS[part] for part in reversed(parts) if part in SPLITS), None)
    for case in sorted({*images, *labels}):
        if len(labels[case]) > 1:
            one, two = labels[case][:2]
            text = f"two masks, {one.name} and {two.name}; keep one."
            problems.append(Problem(case, text, files=(*labels[case], *images[case].values())))
            continue
        site = NAME.fullmatch(f"{case}_x")[2]
        attributes: dict[str, str | float] = {"site": site, "group": "sick"}
        if split:
            attributes["split"] = split
        label = labels[case][0] if labels[case] else None
        cases.append(Case(case, folder.name, images[case], label, attributes))
    return cases, problems
