"""Tables beside the volumes: rows by column name, and which columns there must be."""

import csv
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from volumediff.data.cases import Case
from volumediff.errors import DataError

__all__ = ["columns", "described", "number", "participants", "rows"]

Attributes = dict[str, str | float]


def columns(path: Path) -> list[str]:
    """The names in the first line; none where there is no table."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            return [name.strip() for name in next(csv.reader(file), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def rows(path: Path, needed: Sequence[str], *, delimiter: str = ",") -> list[dict[str, str]]:
    """The rows of a table, cells without surrounding blanks.

    Arguments:
        path: of the table
        needed: columns that must be there

    Raises:
        DataError: no table, or a column is missing; one line that names it
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=delimiter)
            names = [name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = names
            found = [
                {k: v.strip() for k, v in row.items() if k and isinstance(v, str)}
                for row in reader
            ]
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a table, it is not there.") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a table ({error}).") from error
    for name in needed:
        if name not in names:
            have = ", ".join(names[:8]) or "nothing"
            raise DataError(f"{path}: expected a column '{name}', it has {have}; add it.")
    for line, row in enumerate(found, start=2):
        for name in needed:
            if name not in row:
                raise DataError(f"{path}: row {line} ends before the column '{name}'; repair it.")
    return found


def number(text: str) -> str | float:
    """The finite number that a cell holds, or the text."""
    try:
        value = float(text)
    except ValueError:
        return text
    return value if math.isfinite(value) else text


def participants(root: Path) -> dict[str, Attributes]:
    """Rows of `participants.tsv` by participant, without the values that are n/a."""
    path = root / "participants.tsv"
    if not path.is_file():
        return {}
    table = {}
    for row in rows(path, ["participant_id"], delimiter="\t"):
        values = {k: v for k, v in row.items() if k != "participant_id"}
        table[row["participant_id"]] = {
            k: number(v) for k, v in values.items() if v not in ("", "n/a")
        }
    return table


def described(case: Case, table: dict[str, Attributes]) -> Case:
    """The case with what the table of participants says about it."""
    for key in (case.id, case.patient, case.patient.removeprefix("sub-")):
        if key in table:
            patient = str(table[key].get("patient_id", case.patient))
            return replace(case, patient=patient, attributes={**case.attributes, **table[key]})
    return case
