r"""Whose a case is, where a layout cannot say it: by a pattern of ids, or by a table.

Splits keep the cases of a patient together, and two crops of one animal are one patient. A name
such as `mouse01L` does not say so; the pattern `mouse\d+` does, and so does a table `patients.tsv`
(or `.csv`) beside the data, which every command reads:

    case      patient
    mouse01L  mouse01
    mouse01R  mouse01
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from volumediff.data.cases import Case, readable
from volumediff.data.layouts._tables import rows
from volumediff.errors import DataError, UsageError

__all__ = ["TABLES", "Patients", "listed", "patients_rule", "read_patients", "whose"]

TABLES = ("patients.tsv", "patients.csv")
SHOWN = 3  # cases that a message names


@dataclass(frozen=True)
class Patients:
    r"""The rule that names the patient of every case; one of the two is given.

    Arguments:
        pattern: regular expression that is searched in the id of a case; the patient is its first
            group, or all that it matches: `mouse\d+` makes `mouse01` of `mouse01L`
        table: file with the columns `case` and `patient`
    """

    pattern: str | None = None
    table: Path | None = None

    def __post_init__(self) -> None:
        if (self.pattern is None) == (self.table is None):
            raise ValueError("expected pattern or table, one of the two.")
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            raise ValueError(
                f"pattern {self.pattern!r} is no regular expression: {error}."
            ) from None

    def patient(self, case: str) -> str | None:
        """The patient of an id; None where the rule does not name one.

        Raises:
            DataError: the table cannot be read
        """
        if self.table is not None:
            return read_patients(self.table).get(case)
        assert self.pattern is not None, "one of the two"
        match = re.search(self.pattern, case)
        if match is None:
            return None
        return match[1] if match.re.groups else match[0]

    def known(self, cases: Sequence[Case]) -> list[Case]:
        """The cases with the patients that the rule names; others keep theirs."""
        named = ((case, self.patient(case.id)) for case in cases)
        return [case if who is None else replace(case, patient=who) for case, who in named]

    def named(self, cases: Sequence[Case]) -> list[Case]:
        """The same, for training: the rule must name every patient.

        Raises:
            UsageError: it does not, or cuts a number in two
        """
        found = self.of_each([case.id for case in cases], where="data.patients")
        return [replace(case, patient=found[case.id]) for case in cases]

    def of_each(self, ids: Sequence[str], *, where: str) -> dict[str, str]:
        """Case -> patient; the rule must name every one.

        Arguments:
            ids: of the cases
            where: what the user knows the rule by, for messages

        Raises:
            UsageError: it does not, or cuts a number in two
            DataError: the table cannot be read
        """
        table = None if self.table is None else read_patients(self.table)
        found = {i: self.patient(i) if table is None else table.get(i) for i in ids}
        missing = [i for i, who in found.items() if not who]
        if missing:
            raise UsageError(
                f"{where}: names no patient for {len(missing)} of {len(ids)} cases: "
                f"{_some(missing)}; correct {'the pattern' if self.table is None else self.table}."
            )
        if self.pattern is not None:
            self._whole_numbers(ids, where)
        return {i: who for i, who in found.items() if who}

    def _whole_numbers(self, ids: Sequence[str], where: str) -> None:
        r"""`mouse\d` would make one patient of mouse1, mouse10 and mouse11."""
        assert self.pattern is not None, "checked"
        for case in ids:
            match = re.search(self.pattern, case)
            assert match is not None, "checked"
            end = match.end(1) if match.re.groups else match.end()
            if case[end - 1 : end].isdigit() and case[end : end + 1].isdigit():
                raise UsageError(
                    f"{where}: the pattern {self.pattern!r} ends inside a number of {case}, "
                    "and would join different patients; take all digits, as in \\d+."
                )


def patients_rule(text: Path | str) -> Patients:
    """A table where the text is a file or ends like one, else a pattern.

    Raises:
        UsageError: the pattern is no regular expression
    """
    place = Path(text)
    if place.suffix.lower() in (".tsv", ".csv") or place.is_file():
        return Patients(table=place)
    try:
        return Patients(pattern=str(text))
    except ValueError as error:
        raise UsageError(f"patients: {error}") from None


def read_patients(path: Path) -> dict[str, str]:
    """Case -> patient, as a table says it.

    Raises:
        DataError: no table, a column is missing, or a case stands there twice
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    found: dict[str, str] = {}
    for row in rows(path, ["case", "patient"], delimiter=delimiter):
        case, patient = row["case"], row["patient"]
        if not case or not patient:
            raise DataError(f"{path}: a row lacks its case or its patient; complete it.")
        if found.setdefault(case, patient) != patient:
            raise DataError(
                f"{path}: case {case} is of {found[case]} and of {patient}; keep one row."
            )
    return found


def listed(root: Path) -> Mapping[str, str] | None:
    """The table beside the data; None where there is none.

    Raises:
        DataError: it cannot be read, or there are two
    """
    base = root if root.is_dir() else root.parent
    tables = [base / name for name in TABLES if (base / name).is_file()]
    if len(tables) > 1:
        raise DataError(f"{base}: has {' and '.join(TABLES)}; keep one.")
    return read_patients(tables[0]) if tables else None


def whose(case: Case, table: Mapping[str, str] | None) -> tuple[Case, str | None]:
    """A case with the patient that the table beside the data names, or why there is none."""
    if table is None:
        return case, None
    if case.id not in table:
        return case, f"is not in {TABLES[0]} beside the data; add its patient."
    return replace(case, patient=readable(table[case.id])), None


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
