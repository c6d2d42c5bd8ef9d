"""RUN/sources.json: what every volume of a run was prepared from, to notice one that changes.

A volume that is replaced between two starts of a run would be prepared anew, and the run would go
on with other data than it began with.
"""

from collections.abc import Mapping
from pathlib import Path

from volumediff.errors import UsageError
from volumediff.storage.records import Record, read, write

__all__ = ["NAME", "keep_sources"]

NAME = "sources.json"


class StoredSources(Record):
    """sources.json: case -> digest of its files and of how they are prepared."""

    cases: dict[str, str]


def keep_sources(run: Path, found: Mapping[str, str], *, kept: bool) -> None:
    """Writes the record of a run, or checks the volumes against the one that it has.

    Arguments:
        found: case -> digest, of the training and the validation part
        kept: whether the run was trained before

    Raises:
        UsageError: a volume is not the one that the run began with
        DataError: the record is damaged
    """
    path = run / NAME
    if not (kept and path.is_file()):
        write(path, StoredSources(cases=dict(found)))
        return
    before = read(path, StoredSources).cases
    other = [name for name, digest in found.items() if before.get(name) != digest]
    if other:
        raise UsageError(
            f"{run}: case {other[0]} is not the volume that the run began with: its files "
            f"changed, or this version prepares them in another way ({len(other)} of {len(found)} "
            "cases); bring the files back, or start another run with output=DIR."
        )
