"""Densities that are normal in a function of the time, cut to an interval, and their numbers,
accurate in both tails."""

from abc import ABC
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.times._base import TimeDensity, check_interval

__all__ = ["NormalDensity", "cut_normal"]


@dataclass(frozen=True)
class NormalDensity(TimeDensity, ABC):
    """Times of which a function is normal, cut to an interval of times.

    Arguments:
        mean: m, of the function
        deviation: s > 0
        low: where the interval begins, itself excluded
        high: where it ends
    """

    mean: float
    deviation: float
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)
        if not self.deviation > 0:
            raise ValueError(f"deviation: expected a positive number, got {self.deviation}.")

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high


def cut_normal(
    u: Float[Tensor, "b"], low: Float[Tensor, ""], high: Float[Tensor, ""]
) -> Float[Tensor, "b"]:
    """N(0, 1) between two ends, from uniform numbers: `high` at u = 0, and falling.

    Raises:
        ValueError: there is next to nothing of the density between the ends
    """
    # Above the middle the probabilities are close to 1; those of the mirror image are not.
    mirrored = float(low) > 0
    ends = -torch.stack([high, low]) if mirrored else torch.stack([low, high])
    below, up_to = torch.special.erfc(-ends / 2**0.5) / 2  # ndtr loses the lower tail
    if not float(up_to - below) > torch.finfo(ends.dtype).tiny:
        raise ValueError(
            "times: expected some of the density between low and high, got next to nothing; move "
            "its mean, or widen the interval."
        )
    if mirrored:
        return -torch.special.ndtri(below + (up_to - below) * u).clamp(max=-low)
    return torch.special.ndtri(up_to - (up_to - below) * u).clamp(min=low, max=high)
