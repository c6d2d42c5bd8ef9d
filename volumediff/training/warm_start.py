"""A run that begins with another run's weights: fine-tuning, and slices before volumes.

A pseudo-3D network may be trained on single slices first (`network.through_plane: false`, a crop
of one slice) and then inflated: every layer within the plane keeps its weights and gains an
identity through the plane, so that the 3D run begins as the 2D model applied slice by slice.
"""

from pathlib import Path

from torch import nn

from volumediff.classification import StateClassifier
from volumediff.comparison import ReconstructionComparer
from volumediff.errors import UsageError
from volumediff.model import Model
from volumediff.networks.pseudo3d import Pseudo3D, inflate
from volumediff.training.assemble import load_run

__all__ = ["warm_start"]


def warm_start(module: nn.Module, source: Path) -> None:
    """Puts the averaged weights of a run into a fresh module, inflated where that is due.

    Normalisation of states is not taken over: it belongs to the data.

    Raises:
        UsageError: the networks are not the same, beside layers through the plane
        DataError: the other run is damaged
    """
    _, other = load_run(source)
    if type(other) is not type(module):
        raise UsageError(f"start_from = {source}: trains something else than this run.")
    target, given = module, other
    if isinstance(module, Model) and isinstance(other, Model):
        target, given = module.network, other.network
    elif isinstance(module, StateClassifier) and isinstance(other, StateClassifier):
        target, given = module.classifier, other.classifier
    elif isinstance(module, ReconstructionComparer) and isinstance(other, ReconstructionComparer):
        target, given = module.comparer, other.comparer
    weights, expected = given.state_dict(), target.state_dict()
    if set(weights) < set(expected) and isinstance(target, Pseudo3D):
        through = next(
            name for name in expected if name not in weights and name.endswith("weight")
        )
        weights = inflate(weights, kernel=expected[through].shape[2])
    try:
        target.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"start_from = {source}: does not fit this network ({reason}).") from None
