"""`participants.tsv`: what is known about people, and whose examinations a row describes.

A row belongs to the case or to the patient that it names. People write names in several ways: one
that is nowhere as it is written is compared without `sub-`, without zeros in front of a number,
without upper case and in one encoding of accents, as long as one name alone fits then. Where the
table has a column for the session, a row describes that session.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from volumediff.data.cases import Case, Problem
from volumediff.data.layouts._base import Found
from volumediff.data.layouts._tables import is_missing, number, rows

__all__ = ["PARTICIPANTS", "Participants", "with_participants"]

PARTICIPANTS = "participants.tsv"
SESSION_COLUMNS = ("session_id", "session", "ses", "visit")
SESSION = re.compile(r"[_-](?:ses|session|visit|timepoint|tp)-?([A-Za-z0-9+]+)", re.I)
SHOWN = 4

Attributes = dict[str, str | float]


@dataclass(frozen=True, eq=False)
class _Row:
    """One row: whom it names, of which session it is if it says so, and what is known."""

    name: str
    session: str | None
    attributes: Attributes


class Participants:
    """The table beside a data set.

    Arguments:
        root: folder of the data set; without a table nothing is known
        patients: all of the data set, if they are known: a name in another spelling must not fit
            two of them

    Raises:
        DataError: a table that cannot be understood
    """

    def __init__(self, root: Path, patients: Iterable[str] = ()) -> None:
        path = root / PARTICIPANTS
        self._rows = _table(path, "participant_id") if path.is_file() else []
        self._exact: dict[str, list[_Row]] = defaultdict(list)
        self._alike: dict[str, list[_Row]] = defaultdict(list)
        for row in self._rows:
            self._exact[row.name].append(row)
            self._alike[_plain(row.name)].append(row)
        spellings: dict[str, set[str]] = defaultdict(set)
        for patient in patients:
            spellings[_plain(patient)].add(patient)
        for plain, several in spellings.items():
            if len(several) > 1:
                self._alike.pop(plain, None)

    def described(self, case: Case) -> Case:
        """The case with what the table says about it."""
        known = _agreed(self._of(case))
        patient = str(known.get("patient_id", case.patient))
        return replace(case, patient=patient, attributes={**case.attributes, **known})

    def problems(self, cases: Sequence[Case]) -> list[Problem]:
        """Rows that match no case, and rows of one case that contradict each other."""
        used: set[_Row] = set()
        without = []
        torn: dict[str, set[str]] = defaultdict(set)
        for case in cases:
            found = self._of(case)
            used.update(found)
            without += [] if found else [case.id]
            for row in found:
                torn[row.name] |= set().union(*(r.attributes for r in found)) - set(_agreed(found))
        problems = []
        left = [row.name for row in self._rows if row not in used]
        if left:
            none = len(left) == len(self._rows)
            advice = "; name the participants as their files are named" if none else ""
            text = f"{len(left)} of {len(self._rows)} rows match no case: {_some(left)}{advice}."
            problems.append(Problem(PARTICIPANTS, text, "warning" if none else "info"))
        if without and used:
            text = f"{len(without)} of {len(cases)} cases have no row: {_some(without)}."
            problems.append(Problem(PARTICIPANTS, text, "info"))
        for name, columns in torn.items():
            if columns:
                text = (
                    f"the rows of {name} differ in {_some(sorted(columns))}, which is left out; "
                    "keep one row, or add a column session_id."
                )
                problems.append(Problem(PARTICIPANTS, text, "warning"))
        return problems

    def _of(self, case: Case) -> list[_Row]:
        """The rows of a case, or those of its patient, in the session that its name tells."""
        names = (case.id, case.patient, case.patient.removeprefix("sub-"))
        found = next((self._exact[name] for name in names if name in self._exact), [])
        for name in () if found else names:
            alike = self._alike.get(_plain(name), [])
            if len({row.name for row in alike}) == 1:
                found = alike
                break
        match = SESSION.search(case.id)
        if match is None:
            return found
        return [row for row in found if row.session in (None, _plain(match[1]))]


def with_participants(root: Path, cases: Sequence[Case]) -> Found:
    """Cases with what `participants.tsv` says about them, and what of it fits none.

    BIDS' tables of the sessions of one person, `sub-01/sub-01_sessions.tsv`, are read, too.

    Raises:
        DataError: a table that cannot be understood
    """
    if not (root / PARTICIPANTS).is_file() and next(root.glob("*/*_sessions.tsv"), None) is None:
        return list(cases), []
    table = Participants(root, {case.patient for case in cases})
    described = [_in_session(root, table.described(case)) for case in cases]
    return described, table.problems(cases)


def _in_session(root: Path, case: Case) -> Case:
    match = SESSION.search(case.id)
    path = root / case.patient / f"{case.patient}_sessions.tsv"
    if match is None or not path.is_file():
        return case
    found = [row for row in _table(path, "session_id") if _plain(row.name) == _plain(match[1])]
    return replace(case, attributes={**case.attributes, **_agreed(found)})


def _table(path: Path, key: str) -> list[_Row]:
    result = []
    for row in rows(path, [key], delimiter="\t"):
        session = next((row[c] for c in SESSION_COLUMNS if c != key and row.get(c)), None)
        known = {k: number(v) for k, v in row.items() if k != key and not is_missing(v)}
        name = row[key].removeprefix("ses-") if key == "session_id" else row[key]
        result.append(_Row(name, None if session is None else _plain(session), known))
    return result


def _plain(name: str) -> str:
    """What is left of a name when all is taken away that people write in several ways."""
    text = unicodedata.normalize("NFC", name).casefold()
    text = re.sub(r"^(sub|ses)-?(?=\w)", "", text)
    return re.sub(r"^0+(?=\d+$)", "", text)


def _agreed(found: Sequence[_Row]) -> Attributes:
    """What no row contradicts."""
    values: dict[str, set[str | float]] = defaultdict(set)
    for row in found:
        for key, value in row.attributes.items():
            values[key].add(value)
    return {key: next(iter(v)) for key, v in values.items() if len(v) == 1}


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
