"""Mean Dice of pairs of masks on any device: what selects checkpoints and thresholds."""

from collections.abc import Iterable

from jaxtyping import Bool
from torch import Tensor

__all__ = ["mean_dice"]


def mean_dice(pairs: Iterable[tuple[Bool[Tensor, "*shape"], Bool[Tensor, "*shape"]]]) -> float:
    """Mean Dice over the pairs of which either mask has a voxel; 1 where none has any."""
    each = []
    for a, b in pairs:
        size = int(a.sum()) + int(b.sum())
        if size:
            each.append(2 * int((a & b).sum()) / size)
    return sum(each) / len(each) if each else 1.0
