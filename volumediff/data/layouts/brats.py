"""BraTS: gliomas and other brain tumours in four MR contrasts.

Two ways to name files:

    2018-2021  BraTS20_Training_001/BraTS20_Training_001_{flair,t1,t1ce,t2,seg}.nii.gz
    2023-      BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz

Labels until 2021 are 1 necrotic core, 2 oedema, 4 enhancing tumour; from 2023 on the last is 3,
and 4 is the resection cavity of treated patients (2024). All of them count, the values stay.

References:
    Menze et al. (2015), The Multimodal Brain Tumor Image Segmentation Benchmark (BRATS),
    doi:10.1109/TMI.2014.2377694
    Baid et al. (2021), The RSNA-ASNR-MICCAI BraTS 2021 Benchmark, arXiv:2107.02314
    Adewole et al. (2023), The Brain Tumor Segmentation (BraTS) Challenge 2023, arXiv:2305.19369
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders, stem, volumes
from volumediff.data.layouts._tables import number, rows

__all__ = ["BraTS"]

CASE = re.compile(r"brats(-[a-z]+-\d{4,}-\d{3}|(20)?\d\d_.+)", re.I)
CHANNELS = frozenset("flair t1 t1ce t2 t1n t1c t2w t2f".split())
# The part, a wrapper, and HGG or LGG.
DEPTH = 3
AGES = re.compile(r"survival_(info|data|evaluation)\.csv", re.I)


@dataclass(frozen=True)
class BraTS(Layout):
    """Folders of one examination each, below any folder of the download.

    Patients of 2023 and later, and those of 2018 and 2019 whose ids end with a number, may have
    several examinations.

    Arguments:
        lesions: values of the label that count, such as [3, 4] for enhancing tumour alone
    """

    tables: ClassVar[tuple[str, ...]] = ("survival_*.csv", "name_mapping*.csv")

    lesions: tuple[int, ...] = (1, 2, 3, 4)

    def recognises(self, root: Path) -> bool:
        return any(_files_of(folder) for folder in first_folders(root, DEPTH))

    def read(self, root: Path) -> Found:
        cases, ages = [], _ages(root)
        for folder in folders(root, DEPTH):
            files = _files_of(folder)
            images = {word: path for word, path in files.items() if word in CHANNELS}
            if not files:
                continue
            patient, time = _patient(folder.name)
            attributes: dict[str, str | float] = {"group": "sick", **ages.get(folder.name, {})}
            if time is not None:
                attributes["timepoint"] = float(time)
            if folder.parent.name.upper() in ("HGG", "LGG"):
                attributes["grade"] = folder.parent.name.upper()
            label = files.get("seg")
            cases.append(Case(folder.name, patient, images, label, attributes, self.lesions))
        return cases, []


def _files_of(folder: Path) -> dict[str, Path]:
    """Last word of the name -> file, of a folder named like an examination."""
    if not CASE.fullmatch(folder.name):
        return {}
    found = {}
    for path in volumes(folder):
        word = stem(path)[len(folder.name) + 1 :].lower()
        if stem(path).lower().startswith(folder.name.lower()) and word in CHANNELS | {"seg"}:
            found[word] = path
        elif stem(path).lower().endswith("_segm"):
            # one label of 2020 kept its original name: W39_1998.09.19_Segm.nii
            found["seg"] = path
    return found


def _patient(name: str) -> tuple[str, str | None]:
    """The patient and the number of the examination."""
    newer = re.fullmatch(r"(brats-[a-z]+-\d+)-(\d+)", name, re.I)
    older = re.fullmatch(r"(brats1[89]_.+)_(\d+)", name, re.I)
    match = newer or older
    return (match[1], match[2]) if match else (name, None)


def _ages(root: Path) -> dict[str, dict[str, str | float]]:
    """Case -> age, from the table of survival."""
    found: dict[str, dict[str, str | float]] = defaultdict(dict)
    for folder in folders(root, 1):
        for path in sorted(p for p in folder.iterdir() if AGES.fullmatch(p.name)):
            for row in rows(path, ["Age"]):
                case = next(
                    (v for k, v in row.items() if re.fullmatch(r"brats\d*id", k, re.I)), ""
                )
                if case and row["Age"]:
                    found[case]["age"] = number(row["Age"])
    return found
