"""Times of the samplers of students, which know one length of step and any time to begin at."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.time_grids import checked_start

__all__ = ["span_ends", "span_times"]

# Of a span: what is less than that above a multiple of it is rounding, and no step of its own.
ROUNDING = 1e-9


def span_times(steps: int, *, start: float = 1.0) -> Float[Tensor, "n"]:
    """`start`, then ever 1 / N less, and 0 last: N steps from t = 1, fewer from a lower start.

    Raises:
        ValueError: a start outside (0, 1]
    """
    count = max(1, math.ceil(checked_start(start) * steps - ROUNDING))
    above = start - torch.arange(count, dtype=torch.float64) / steps
    return torch.cat([above, torch.zeros(1, dtype=torch.float64)])


def span_ends(t: Float[Tensor, "b"], steps: int) -> Float[Tensor, "b"]:
    """Where the steps of `span_times` end that begin at some times."""
    return torch.where(t * steps - 1 <= ROUNDING, 0.0, t - 1 / steps)
