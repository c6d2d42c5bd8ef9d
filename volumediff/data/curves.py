"""Curves of a signal: linear between values at equal distances."""

from jaxtyping import Float
from torch import Tensor

__all__ = ["curved"]


def curved(s: Float[Tensor, "*n"], values: Float[Tensor, "k"]) -> Float[Tensor, "*n"]:
    """The curve at s, for s in [0, 1]; `values` are those at 0, 1 / (k - 1), ..., 1."""
    pieces = len(values) - 1
    place = s * pieces
    low = place.floor().clamp(0, pieces - 1).long()
    return values[low].lerp(values[low + 1], place - low)
