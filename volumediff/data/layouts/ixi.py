"""IXI: healthy volunteers from three London hospitals in T1, T2, PD and MRA.

    [IXI-T1/]IXI002-Guys-0828-T1.nii.gz, IXI.csv

The demographics are published as IXI.xls. Save its sheet as IXI.csv to have age and sex; the .xls
itself is not read. Diffusion series (DTI) are left out: they are many files of one examination.

References:
    brain-development.org/ixi-dataset (CC BY-SA 3.0)
"""

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, Problem
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders, folders, stem, volumes
from volumediff.data.layouts._tables import number, rows

__all__ = ["IXI"]

NAME = re.compile(r"((IXI(\d{3}))-([A-Za-z]+)-\d+)-(T1|T2|PD|MRA)")
# A folder per contrast.
DEPTH = 1
SEX = {"1": "male", "2": "female"}


@dataclass(frozen=True)
class IXI(Layout):
    """One case per examination; the hospital (Guys, HH, IOP) is the site."""

    tables: ClassVar[tuple[str, ...]] = ("IXI.csv", "IXI.xls")

    def recognises(self, root: Path) -> bool:
        return any(
            NAME.fullmatch(stem(path))
            for folder in first_folders(root, DEPTH)
            for path in volumes(folder)[:1]
        )

    def read(self, root: Path) -> Found:
        images: dict[str, dict[str, Path]] = defaultdict(dict)
        names: dict[str, re.Match[str]] = {}
        for folder in folders(root, DEPTH):
            for path in volumes(folder):
                if match := NAME.fullmatch(stem(path)):
                    images[match[1]][match[5]] = path
                    names[match[1]] = match
        known = _demographics(root)
        cases = []
        for case, match in names.items():
            attributes = {"site": match[4], "group": "healthy", **known.get(int(match[3]), {})}
            cases.append(Case(case, match[2], images[case], None, attributes))
        problems = []
        if not (root / "IXI.csv").is_file() and (root / "IXI.xls").is_file():
            text = "IXI.xls is not read, age and sex are unknown; save its sheet as IXI.csv"
            problems.append(Problem("IXI.xls", text, "info"))
        return cases, problems


def _demographics(root: Path) -> dict[int, dict[str, str | float]]:
    """Number of the volunteer -> age and sex; of several rows the first that says something."""
    path = root / "IXI.csv"
    if not path.is_file():
        return {}
    found: dict[int, dict[str, str | float]] = {}
    for row in rows(path, ["IXI_ID", "AGE"]):
        who = number(row["IXI_ID"])
        if isinstance(who, str):
            continue
        known = found.setdefault(int(who), {})
        sex = next((v for k, v in row.items() if k.upper().startswith("SEX")), "")
        if row["AGE"]:
            known.setdefault("age", number(row["AGE"]))
        if sex.removesuffix(".0") in SEX:
            known.setdefault("sex", SEX[sex.removesuffix(".0")])
    return found
