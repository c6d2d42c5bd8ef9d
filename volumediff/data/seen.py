"""The leakage record of a model: subjects used for training, validation and calibration.

Results on volumes that a model was trained, selected or calibrated on say little about new ones,
and so do those of another examination, or of healthy slices, of the same patient. A run therefore
keeps a record of its parts other than test, and of what the runs that it was made from have seen;
maps carry it along, so that an evaluation can tell without the run.

Names and contents are kept as the first 64 bits of their SHA-256: they can be recognised, and the
names of training patients do not travel with maps.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from volumediff.data.cases import Case, safe_id
from volumediff.data.files import digests, stem_of
from volumediff.storage.digests import sha256
from volumediff.storage.records import Record, read, write

__all__ = ["Match", "Roster", "Seen", "roster"]

DIGITS = 16  # of SHA-256: 64 bits, so that no two of a million names are equal by chance

# They are checked in this order: only the first is proof, the others are claims.
KINDS = ("file", "patient", "name")


Part = Literal["train", "validation", "calibration"]


class StoredParts(Record):
    """Token of a file, patient or name -> the part that it was in."""

    file: dict[str, Part]
    patient: dict[str, Part]
    name: dict[str, Part]


class StoredRoster(Record):
    """Of one run or site."""

    of: str
    parts: StoredParts


class StoredSeen(Record):
    """seen.json."""

    rosters: tuple[StoredRoster, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Match:
    """Why a volume is not new.

    Arguments:
        by: `file` (equal content), `patient`, or `name` (of the case or of its file)
        part: train, validation or calibration
        of: the run or the site
    """

    by: str
    part: str
    of: str


@dataclass(frozen=True)
class Roster:
    """The cases that one run, or one site's calibration, has seen.

    Arguments:
        of: the run or the site, in words
        parts: kind (file, patient or name) -> token -> part
    """

    of: str
    parts: Mapping[str, Mapping[str, str]]


def roster(of: str, parts: Mapping[str, Sequence[Case]]) -> Roster:
    """The roster of cases; reads every byte of their images.

    Arguments:
        of: the run or the site, in words
        parts: part -> its cases

    Raises:
        DataError: a file cannot be read
    """
    found: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    # A name such as FLAIR, in a folder per case, is no case's own.
    owners = Counter(s for cases in parts.values() for case in cases for s in _stems(case))
    for part, cases in parts.items():
        for case in cases:
            own = [stem for stem in _stems(case) if owners[stem] == 1]
            tokens = {
                "file": [digest[:DIGITS] for digest in digests(case).values()],
                "patient": [_token(case.patient)],
                "name": [_token(name) for name in (case.id, *own)],
            }
            for kind, values in tokens.items():
                for value in values:
                    found[kind].setdefault(value, part)
    return Roster(of, found)


@dataclass(frozen=True)
class Seen:
    """What everything that made a map has seen.

    Arguments:
        rosters: of the runs and sites whose cases are known
        unknown: models whose training volumes nobody knows, in words
    """

    rosters: tuple[Roster, ...] = ()
    unknown: tuple[str, ...] = ()

    def __or__(self, other: "Seen") -> "Seen":
        """What either has seen."""
        rosters = [*self.rosters, *(r for r in other.rosters if r not in self.rosters)]
        return Seen(tuple(rosters), tuple(dict.fromkeys((*self.unknown, *other.unknown))))

    def find(
        self, *, digests: Iterable[str], patients: Iterable[str], names: Iterable[str]
    ) -> Match | None:
        """Where a case was seen, the strongest evidence first; None for a new one.

        Arguments:
            digests: SHA-256 of its images
            patients: names of its patient
            names: of the case and of its files, without endings
        """
        asked = {
            "file": [digest[:DIGITS] for digest in digests],
            "patient": [_token(patient) for patient in patients],
            "name": [_token(name) for name in names],
        }
        for kind, values in asked.items():
            for known in self.rosters:
                for value in values:
                    if value in known.parts[kind]:
                        return Match(kind, known.parts[kind][value], known.of)
        return None

    def to_json(self) -> str:
        """As text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    def save(self, path: Path) -> None:
        """Writes JSON with its SHA-256, whole or not at all."""
        write(path, json.loads(self.to_json()))

    @classmethod
    def load(cls, path: Path) -> "Seen":
        """Reads what `save` wrote.

        Raises:
            DataError: no such file, or one that is damaged or edited
        """
        stored = read(path, StoredSeen)
        rosters = (Roster(r.of, r.parts.model_dump()) for r in stored.rosters)
        return cls(tuple(rosters), stored.unknown)


def _stems(case: Case) -> set[str]:
    return {safe_id(stem_of(path)) for path in case.images.values()}


def _token(name: str) -> str:
    return sha256(name.encode("utf-8", "surrogateescape"))[:DIGITS]
