"""RUN/seen.json: the subjects used to train, validate and calibrate a run and the runs it uses.

A run may begin with another's weights (`start_from`), or use other runs: an autoencoder,
the states of a diffusion run, its estimates. Whoever was in training there was seen here, too.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from volumediff.data.cases import Case
from volumediff.data.seen import Seen, roster
from volumediff.data.splits import PARTS, Split
from volumediff.settings.run_config import RunConfig
from volumediff.storage.checkpoint import exists

__all__ = ["ADDED", "NAME", "keep_seen", "seen_by", "sources_of"]

NAME = "seen.json"
# Of volumes that calibration was given later: the record of the training never changes.
ADDED = "calibration/seen.json"


def seen_by(run: Path) -> Seen:
    """What the weights of a run have seen.

    Raises:
        DataError: the record is damaged
    """
    if not (run / NAME).is_file():
        return Seen(unknown=(f"the training of {run}, which has no {NAME}",))
    found = Seen.load(run / NAME)
    return found | Seen.load(run / ADDED) if (run / ADDED).is_file() else found


def sources_of(config: RunConfig) -> Seen:
    """What the runs have seen that a run is made from.

    Raises:
        DataError: one of their records is damaged
    """
    found = Seen()
    for path in (config.start_from, *config.borrows().values()):
        if path is not None:
            found |= seen_by(path)
    return found


def keep_seen(config: RunConfig, cases: Sequence[Case], split: Split, *, kept: bool) -> None:
    """Writes the record of a run; one that is there stands for as long as its split.

    Arguments:
        cases: of the data set
        split: of the run
        kept: whether the run was trained with this split before

    Raises:
        DataError: a file cannot be read, or the record is damaged
    """
    run = config.output
    if kept and (run / NAME).is_file():
        Seen.load(run / NAME)  # a damaged one is found now, and not by the first map
        return
    known = {case.id: case for case in cases}
    used = [part for part in PARTS if part != "test"]
    parts = {part: [known[name] for name in getattr(split, part)] for part in used}
    # Imported weights have a record of their own, which says what is not known of them.
    imported = not kept and exists(run, "last")
    # What it says of an earlier split of this run is over; a run of this name that was moved away
    # and is a source now is another one.
    before = _without(seen_by(run), str(run)) if imported else sources_of(config)
    (Seen((roster(str(run), parts),)) | before).save(run / NAME)


def _without(seen: Seen, of: str) -> Seen:
    return replace(seen, rosters=tuple(r for r in seen.rosters if r.of != of))
