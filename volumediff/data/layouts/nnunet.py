"""nnU-Net raw: numbered channels, and a description that names them."""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.data.layouts._base import CONVENTION, Found, Layout
from volumediff.data.layouts._files import NIFTI, label_names, read_json, stem, volumes
from volumediff.data.layouts.datalist import lists_cases
from volumediff.errors import DataError

__all__ = ["NNUNet"]


@dataclass(frozen=True)
class NNUNet(Layout):
    """`imagesTr/<case>_0000.nii.gz`, `labelsTr/<case>.nii.gz`, `dataset.json`; Ts is for tests.

    Its `labels` name the values; the one called `ignore` is neither hit nor miss. Names cannot say
    which cases are one patient: see `volumediff.data.patients`.
    """

    rank: ClassVar[int] = CONVENTION

    def recognises(self, root: Path) -> bool:
        parts = (root / "imagesTr", root / "imagesTs")
        return any(part.is_dir() for part in parts) and not lists_cases(root)

    def read(self, root: Path) -> Found:
        info = read_json(root / "dataset.json")
        names = info.get("channel_names") or info.get("modality")
        ending = info.get("file_ending", ".nii.gz")
        if not isinstance(names, dict) or not names or not all(n.isdecimal() for n in names):
            raise DataError(
                f'{root / "dataset.json"}: expected \'channel_names\' such as {{"0": "T1w"}}.'
            )
        if not NIFTI.search(str(ending)):
            raise DataError(
                f"{root / 'dataset.json'}: expected NIfTI, got {ending}; convert the files."
            )
        meanings = label_names(info)
        ignored = tuple(value for value, name in meanings.items() if name.lower() == "ignore")
        cases, problems = [], []
        for part, split in (("Tr", "train"), ("Ts", "test")):
            files: dict[str, dict[str, Path]] = defaultdict(dict)
            for path in volumes(root / f"images{part}"):
                match = re.fullmatch(r"(.+)_(\d{4})", stem(path))
                if match is None:
                    text = (
                        f"{path}: expected a channel number such as _0000 at the end; rename it."
                    )
                    problems.append(Problem(path.name, text))
                    continue
                files[match[1]][str(int(match[2]))] = path
            for case, found in files.items():
                missing = [n for n in names if str(int(n)) not in found]
                if missing:
                    text = (
                        f"missing channel '{names[missing[0]]}' (_{int(missing[0]):04d}); add it."
                    )
                    problems.append(Problem(case, text))
                    continue
                images = {str(name): found[str(int(n))] for n, name in names.items()}
                label = root / f"labels{part}" / f"{case}{ending}"
                label = label if label.is_file() else None
                cases.append(
                    Case(
                        case,
                        patient_of(case),
                        images,
                        label,
                        {"split": split},
                        ignored=ignored,
                        names=meanings,
                    )
                )
        return cases, problems
