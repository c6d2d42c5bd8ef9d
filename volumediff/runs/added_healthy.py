"""RUN/calibration/healthy.json: healthy volumes that were added to a finished run.

It lists the cases with their files and the SHA-256 of each.
"""

from pathlib import Path

from volumediff.storage.digests import sha256
from volumediff.storage.records import Record, read, write

__all__ = ["NAME", "StoredCase", "added_cases", "added_digest", "keep_added"]

NAME = "calibration/healthy.json"


class StoredCase(Record):
    """One case: channel -> file and its SHA-256."""

    id: str
    patient: str
    images: dict[str, str]
    sha256: dict[str, str]
    attributes: dict[str, str | float]


class StoredHealthy(Record):
    """healthy.json."""

    cases: tuple[StoredCase, ...] = ()


def added_cases(run: Path) -> tuple[StoredCase, ...]:
    """The cases that were added to a run.

    Raises:
        DataError: their record is damaged
    """
    path = run / NAME
    if not path.is_file():
        return ()
    return read(path, StoredHealthy, advice="remove it and add the volumes again").cases


def added_digest(run: Path) -> str:
    """What tells one set of added volumes from another; empty where there are none."""
    added = added_cases(run)
    return sha256(*sorted(d for c in added for d in c.sha256.values()))[:12] if added else ""


def keep_added(run: Path, cases: tuple[StoredCase, ...]) -> None:
    """Writes the record of a run, with all cases that it has now.

    Raises:
        DataError: no space or no permission; the old one stays
    """
    write(run / NAME, StoredHealthy(cases=cases))
