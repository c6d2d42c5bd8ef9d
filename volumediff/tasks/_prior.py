"""The segmentation network of another run, whose probabilities are what labels end in.

A run keeps a copy of it, and then stands alone.
"""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from volumediff.errors import UsageError
from volumediff.model import LabelProbabilities
from volumediff.tasks._base import Task
from volumediff.tasks._borrowing import agree, keep, kept, source_of, take
from volumediff.tasks._loading import build_task, load_task

__all__ = ["BorrowedPrior", "keep_prior", "prior_of"]

NAME, WHERE = "prior", "prior"


@dataclass(frozen=True, eq=False)
class BorrowedPrior:
    """A network with `probabilities`, and the SHA-256 of its weights; empty where fresh."""

    module: nn.Module
    digest: str


def keep_prior(of: Path, run: Path, *, data: object) -> None:
    """Copies the network of a run, once.

    Arguments:
        of: folder of that run
        run: folder of this one
        data: section of this run, whose volumes must be prepared as those of the other

    Raises:
        UsageError: it is not trained yet, trains something else, or saw other volumes
        DataError: its checkpoint is damaged
    """
    if kept(run, NAME) is not None:
        return
    if not (of / "config.yaml").is_file():
        raise UsageError(
            f"{WHERE} = {of}: no such run; train a segmentation network first, with task: "
            f"segmentation and output={of}."
        )
    task = load_task(of)
    theirs = task.config.data
    agree(
        {
            "data.channels": (data.channels, theirs.channels),
            "data.preprocessing": (data.preprocessing, theirs.preprocessing),
        },
        where=WHERE,
        of=of,
    )
    keep(run, NAME, of=of, tensors=_lent(task, of).state_dict(), where=WHERE)


def prior_of(of: Path, run: Path | None, *, labels: tuple[int, ...]) -> BorrowedPrior:
    """The network that a run keeps; with fresh weights where it keeps none yet.

    Arguments:
        of: folder of the run that it is of
        run: folder of this run
        labels: of this run, in order

    Raises:
        UsageError: no such run, it trains something else or other labels
    """
    copy = kept(run, NAME)
    config = (
        source_of(of, where=WHERE, folder="segmentation_networks") if copy is None else copy.config
    )
    module = _lent(build_task(config), of)
    agree({"recipe.labels": (tuple(labels), tuple(module.labels))}, where=WHERE, of=of)
    if copy is not None:
        take(module, copy)
    module.requires_grad_(False)
    return BorrowedPrior(module.eval(), "" if copy is None else copy.digest)


def _lent(task: Task, of: Path) -> nn.Module:
    """What gives probabilities of labels."""
    found = task.lend(LabelProbabilities)
    if found is None:
        raise UsageError(
            f"{WHERE} = {of}: expected the run of a segmentation network, got one that trains "
            f"{task.noun}."
        )
    return found
