"""A checkpoint on the hub: which file of a repository it is, fetched with what describes it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from volumediff.errors import UsageError
from volumediff.hub.place import HubPlace
from volumediff.hub.repository import Repository, look_up
from volumediff.hub.snapshot import fetch
from volumediff.importers._files import PICKLES

__all__ = ["fetched_checkpoint"]

SHOWN = 6  # of several checkpoints


def fetched_checkpoint(
    place: HubPlace, *, weights_only_pickle: bool, report: Callable[[str], None]
) -> tuple[Path, Repository]:
    """The checkpoint of a repository on this machine, and the repository.

    Arguments:
        place: a repository with one checkpoint, or a file in it
        weights_only_pickle: whether the checkpoint may be a pickle
        report: receives the size before the download

    Raises:
        UsageError: no such repository or file, not one checkpoint, or a pickle that nobody allowed
        DataError: a file is not what the hub says, or the disk is full
    """
    repository = look_up(place)
    if place.file is None:
        place = replace(place, file=_only(repository))
    file = str(place.file)
    if file.endswith(PICKLES) and not weights_only_pickle:
        raise UsageError(
            f"{place}: is a pickle, which may hold code; have its tensors alone read with "
            "weights_only_pickle."
        )
    snapshot = fetch(repository, [file], report=report)
    return snapshot.folder / file, repository


def _only(repository: Repository) -> str:
    """The checkpoint of a repository that has one; safetensors come before pickles."""
    names = sorted(repository.files)
    found = [n for n in names if n.endswith(".safetensors")] or [
        n for n in names if n.endswith(PICKLES)
    ]
    if len(found) == 1:
        return found[0]
    place = repository.place
    if not found:
        there = ", ".join(names[:SHOWN]) or "nothing"
        raise UsageError(f"{place}: has no checkpoint; it has {there}.")
    shown = f"{', '.join(found[:SHOWN])}{' ...' if len(found) > SHOWN else ''}"
    raise UsageError(
        f"{place}: has {len(found)} checkpoints ({shown}); name one, as in {place}/{found[0]}."
    )
