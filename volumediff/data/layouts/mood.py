"""MOOD: healthy brains (MR) and abdomens (CT) to train on, and a few toy cases with anomalies.

    brain/brain_train/00000.nii.gz        abdom/abdom_train/00000.nii.gz
    brain/toy/toy_0.nii.gz, brain/toy_label/pixel/toy_0.nii.gz,
    brain/toy_label/sample/toy_0.nii.gz.txt (0 or 1)

References:
    Zimmerer et al. (2022), MOOD 2020: A Public Benchmark for Out-of-Distribution Detection and
    Localization on Medical Images, doi:10.1109/TMI.2022.3170077
"""

import re
from dataclasses import dataclass
from pathlib import Path

from volumediff.data.cases import Case, Problem
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders, stem, volumes

__all__ = ["MOOD"]

TRAIN = re.compile(r"(brain|abdom)_train")
GROUPS = {"0": "healthy", "1": "sick"}
DEPTH = 2


@dataclass(frozen=True)
class MOOD(Layout):
    """One case per volume; the region, brain or abdom, is an attribute."""

    def recognises(self, root: Path) -> bool:
        return any(_is_part(folder) for folder in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        cases, problems = [], []
        for folder in folders(root, DEPTH):
            if not _is_part(folder):
                continue
            match = TRAIN.fullmatch(folder.name)
            region = match[1] if match else folder.absolute().parent.name.removesuffix("_toy")
            for path in volumes(folder):
                case = f"{region}_{stem(path)}"
                images, known = {"image": path}, {"region": region}
                if match:
                    known |= {"group": "healthy", "split": "train"}
                    cases.append(Case(case, case, images, None, known))
                    continue
                truth = folder.parent / "toy_label"
                group = _group(truth / "sample" / f"{path.name}.txt")
                label = truth / "pixel" / path.name
                if group is None or not label.is_file():
                    where = label if group else truth / "sample" / f"{path.name}.txt"
                    text = f"expected its label {where.relative_to(folder.parent)}; add it."
                    problems.append(Problem(case, text, files=(path, label)))
                    continue
                known |= {"group": group, "split": "test"}
                cases.append(Case(case, case, images, label, known))
        return cases, problems


def _is_part(folder: Path) -> bool:
    if folder.name == "toy":
        return (folder.parent / "toy_label" / "pixel").is_dir()
    return bool(TRAIN.fullmatch(folder.name)) and bool(volumes(folder)[:1])


def _group(path: Path) -> str | None:
    """Healthy or sick, as the file says."""
    if not path.is_file():
        return None
    return GROUPS.get(path.read_text(encoding="utf-8", errors="replace").strip()[:1])
