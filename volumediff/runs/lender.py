"""What a row takes of other runs, loaded for the run that it works with."""

from functools import cache, partial

from volumediff.anomaly.lent import Borrowed, Lender
from volumediff.autoencoders import Reconstructor
from volumediff.errors import UsageError
from volumediff.runs.comparer import load_comparer
from volumediff.runs.trained import Trained, load_trained
from volumediff.samples.seen import seen_by

__all__ = ["lender_for"]


def lender_for(trained: Trained) -> Lender:
    """Lends to the methods of a run; each of the other runs is read once."""
    return Lender(cache(partial(_borrowed, trained)), cache(partial(load_comparer, trained)))


def _borrowed(trained: Trained, path: str) -> Borrowed:
    """The autoencoder of another run, which must see the same volumes.

    Raises:
        UsageError: no autoencoder's run, or one of other volumes
    """
    other = load_trained(path, device=str(trained.device))
    model = other.task.lend(Reconstructor)
    if model is None:
        raise UsageError(
            f"first.run = {path}: expected the run of an autoencoder, got one that trains "
            f"{other.task.noun}."
        )
    pairs = [(other.channels, trained.channels)]
    pairs.append((repr(other.preprocessing), repr(trained.preprocessing)))
    for theirs, ours in pairs:
        if theirs != ours:
            raise UsageError(
                f"first.run = {path}: expected a run on the same volumes as {trained.run}, with "
                f"{ours}, got {theirs}; train it with the same data section."
            )
    return Borrowed(model, other.digest, seen_by(other.run))
