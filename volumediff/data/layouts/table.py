"""A table beside the volumes: `cases.csv`, for data sets with a list and no layout of their own.

    id,     image:ct,           label,               patient, age, sex, group
    scan01, scans/scan01.nii.gz, masks/scan01.nii.gz, p01,     63,  f,   sick

Head CT of stroke units (CROMIS, KCH) and the like come as a folder of volumes and a sheet: to
rename its columns is all that is needed. Where the file is there, it says what the cases are,
whatever else the folder looks like.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.data.layouts._base import LISTED, Found, Layout
from volumediff.data.layouts._files import below
from volumediff.data.layouts._tables import columns, number, rows
from volumediff.errors import DataError

__all__ = ["NAME", "Table"]

NAME = "cases.csv"
IMAGE = "image"
LABEL = "label"


@dataclass(frozen=True)
class Table(Layout):
    """`id`, one column `image:CHANNEL` per channel (or `image` alone), and what is known.

    `label` is the file of the mask, if there is one; several readers have a column `label:READER`
    each, and `label` beside them is their consensus. `lesions` and `ignored` name its values
    (`1 3`) that are lesions and that are neither lesion nor healthy, `associated` is the file of
    associated changes. `patient` keeps examinations together (else the id tells,
    `p07_visit2`), and every other column is an attribute. Paths are relative to the table and stay
    below its folder; empty cells mean that there is no such file or value.
    """

    rank: ClassVar[int] = LISTED
    tables: ClassVar[tuple[str, ...]] = ("cases.csv",)

    def recognises(self, root: Path) -> bool:
        return (root / NAME).is_file() or (root.is_file() and root.suffix.lower() == ".csv")

    def read(self, root: Path) -> Found:
        path = root if root.is_file() else root / NAME
        root = path.parent
        names = columns(path)
        channels = {n: n.partition(":")[2] or IMAGE for n in names if _is_channel(n)}
        if not channels:
            raise DataError(
                f"{path}: expected a column 'image', or one 'image:CHANNEL' per channel, it has "
                f"{', '.join(names[:8]) or 'nothing'}; rename the column with the files."
            )
        readers = {n: n.partition(":")[2] for n in names if n.startswith(f"{LABEL}:")}
        cases, problems = [], []
        for line, row in enumerate(rows(path, ["id"]), start=2):
            try:
                cases.append(_case(root, row, channels, readers))
            except DataError as error:
                name = row["id"] or f"row {line}"
                problems.append(Problem(name, f"{path.name}, row {line}: {error}"))
        return cases, problems


def _is_channel(column: str) -> bool:
    return column.partition(":")[0] == IMAGE


def _case(
    root: Path, row: dict[str, str], channels: dict[str, str], readers: dict[str, str]
) -> Case:
    if not row["id"]:
        raise DataError("expected an id, the cell is empty.")
    images = {channel: _file(root, row[n]) for n, channel in channels.items() if row.get(n)}
    label = _file(root, row[LABEL]) if row.get(LABEL) else None
    labels = {reader: _file(root, row[n]) for n, reader in readers.items() if row.get(n)}
    associated = _file(root, row["associated"]) if row.get("associated") else None
    known = {"id", LABEL, "lesions", "ignored", "associated", "patient", *channels, *readers}
    attributes = {k: number(v) for k, v in row.items() if k not in known and v not in ("", "n/a")}
    patient = row.get("patient") or patient_of(row["id"])
    lesions, ignored = (_values(row.get(name, ""), name) for name in ("lesions", "ignored"))
    return Case(
        row["id"],
        patient,
        images,
        label,
        attributes,
        lesions or None,
        ignored,
        associated=associated,
        labels=labels,
    )


def _values(cell: str, name: str) -> tuple[int, ...]:
    """The whole numbers in a cell."""
    try:
        return tuple(int(word) for word in cell.split())
    except ValueError as error:
        raise DataError(
            f"{name}: expected values of the label with blanks between, got {cell!r}."
        ) from error


def _file(root: Path, name: str) -> Path:
    path = below(root, name)
    if not path.exists():
        raise DataError(f"{name}: not there; correct the path.")
    return path
