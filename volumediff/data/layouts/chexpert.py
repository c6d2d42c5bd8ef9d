"""CheXpert: chest radiographs with 14 findings from their reports.

    [CheXpert-v1.0-small/]train.csv, valid.csv
    [CheXpert-v1.0-small/]train/patient00001/study1/view1_frontal.jpg

A finding is 1 (there), 0 (not there), -1 (the report is uncertain) or empty (not mentioned).

References:
    Irvin et al. (2019), CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and
    Expert Comparison, arXiv:1901.07031
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from volumediff.data.cases import Case, Problem
from volumediff.data.layouts._base import Found, Layout
from volumediff.data.layouts._files import first_folders
from volumediff.data.layouts._tables import columns, number, rows
from volumediff.errors import DataError

__all__ = ["CheXpert"]

TABLES = {"train.csv": "train", "valid.csv": "validation"}
NO_FINDING, DEVICES, VIEW = "No Finding", "Support Devices", "Frontal/Lateral"
# What is not a finding.
OTHERS = {"Path": None, "Sex": "sex", "Age": "age", VIEW: "view", "AP/PA": "projection"}
IMAGE = re.compile(r"(train|valid)/(patient\d+)/(study\d+)/([^/]+)\.(jpg|jpeg|png)", re.I)


@dataclass(frozen=True)
class CheXpert(Layout):
    """One case per view; a finding is an attribute of its name, and absent where not mentioned.

    The group is `healthy` with "No Finding", `sick` with any finding but support devices, and
    `unsure` where all that was mentioned is uncertain or not there.

    Arguments:
        views: which views are cases
    """

    tables: ClassVar[tuple[str, ...]] = ("train.csv", "valid.csv")

    views: tuple[Literal["Frontal", "Lateral"], ...] = ("Frontal", "Lateral")

    def recognises(self, root: Path) -> bool:
        return bool(_tables(root))

    def read(self, root: Path) -> Found:
        cases, problems = [], []
        for table in _tables(root):
            for row in rows(table, ["Path", VIEW, NO_FINDING]):
                if row[VIEW] not in self.views:
                    continue
                try:
                    cases.append(_case(table, row))
                except DataError as error:
                    problems.append(Problem(row["Path"], f"{table.name}: {error}"))
        return cases, problems


def _tables(root: Path) -> list[Path]:
    """Tables of the data set in the folder or in the one that it unpacks to."""
    found = [folder / name for folder in first_folders(root, 1) for name in TABLES]
    return [p for p in found if p.is_file() and {"Path", "Sex", "AP/PA"} <= set(columns(p))]


def _case(table: Path, row: dict[str, str]) -> Case:
    # paths start with the name of the data set, which the unpacked folder may not have
    match = IMAGE.search(row["Path"])
    if match is None:
        raise DataError("expected a path such as train/patient00001/study1/view1_frontal.jpg.")
    path = table.parent / match[0]
    if not path.is_file():
        raise DataError(f"{match[0]} is not there; unpack that part, too.")
    findings = {k: float(v) for k, v in row.items() if k not in OTHERS and v in _VALUES}
    known: dict[str, str | float] = {"split": TABLES[table.name], **findings}
    for column, name in OTHERS.items():
        if name and row.get(column):
            known[name] = number(row[column].lower() if name == "sex" else row[column])
    present = {k for k, v in findings.items() if v == 1} - {DEVICES}
    if present:
        known["group"] = "healthy" if present == {NO_FINDING} else "sick"
    else:
        known["group"] = "unsure"
    case = "_".join((match[1], match[2], match[3], match[4]))
    return Case(case, match[2], {"image": path}, None, known)


_VALUES = frozenset({"1", "1.0", "0", "0.0", "-1", "-1.0"})
