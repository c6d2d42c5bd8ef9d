"""The segmentation network of another run, whose probabilities are what labels end in.

A run keeps a copy of it, and then stands alone.
"""

from dataclasses import dataclass
from pathlib import Path

from volumediff.config import config_path
from volumediff.errors import UsageError
from volumediff.model import LabelProbabilities
from volumediff.settings.run_config import RunConfig, load_run_config, saved_config
from volumediff.settings.sections import Data
from volumediff.tasks._agreement import agree
from volumediff.tasks._base import Task
from volumediff.tasks._borrowing import keep, kept, take
from volumediff.tasks._loading import build_task, load_task

__all__ = ["BorrowedPrior", "keep_prior", "prior_of"]

NAME, WHERE = "prior", "prior"
PIPELINE = "wavelet_64"  # of what stands for a run that is not trained yet, as for the planner


@dataclass(frozen=True, eq=False)
class BorrowedPrior:
    """A network with `probabilities`, and the SHA-256 of its weights; empty where fresh."""

    module: LabelProbabilities
    digest: str


def keep_prior(of: Path, run: Path, *, data: Data) -> None:
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
            f"{WHERE} = {of}: no such run; train a segmentation network first, with method=unet "
            f"and output={of}."
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


def prior_of(of: Path, run: Path | None, *, labels: tuple[int, ...], data: Data) -> BorrowedPrior:
    """The network that a run keeps; with fresh weights where it keeps none yet.

    Arguments:
        of: folder of the run that it is of
        run: folder of this run
        labels: of this run, in order
        data: section of this run

    Raises:
        UsageError: no such run, it trains something else or other labels
    """
    copy = kept(run, NAME)
    config = _source(of, labels, data) if copy is None else copy.config
    module = _lent(build_task(config), of)
    agree({"recipe.labels": (tuple(labels), tuple(module.labels))}, where=WHERE, of=of)
    if copy is not None:
        take(module, copy)
    module.requires_grad_(False)
    return BorrowedPrior(module.eval(), "" if copy is None else copy.digest)


def _source(of: Path, labels: tuple[int, ...], data: Data) -> RunConfig:
    """The configuration of a run, or of one of a shipped supervised method of its name."""
    if (of / "config.yaml").is_file():
        return saved_config(of)
    try:
        words = [f"method={config_path('segmentation', of.name)}", f"recipe.labels={list(labels)}"]
        config = load_run_config(PIPELINE, words)
    except UsageError as error:
        raise UsageError(
            f"{WHERE} = {of}: no such run and no shipped method of this name ({error})"
        ) from None
    return config.model_copy(update={"data": data})


def _lent(task: Task, of: Path) -> LabelProbabilities:
    """What gives probabilities of labels."""
    found = task.lend(LabelProbabilities)
    if found is None:
        raise UsageError(
            f"{WHERE} = {of}: expected the run of a segmentation network, got one that trains "
            f"{task.noun}."
        )
    if task.recipe.scalars:
        raise UsageError(
            f"{WHERE} = {of}: expected a segmentation network of the image alone, got one that "
            f"is conditioned on {', '.join(task.recipe.scalars)}; train one without scalars."
        )
    return found
