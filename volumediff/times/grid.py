"""Training times on a grid: the steps of a sampler, and nothing between them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule
from volumediff.times._base import TimeDensity, check_interval

__all__ = ["GridTimes"]


@dataclass(frozen=True)
class GridTimes(TimeDensity):
    r"""All times of a grid alike, t_k = low + (high - low) k / N for k = 1 ... N.

    Arguments:
        steps: N >= 1; with the whole interval they are the times of a sampler of N steps
        low: where the interval begins, itself excluded
        high: where it ends, the last of the times
    """

    steps: int
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)
        if self.steps < 1:
            raise ValueError(f"steps: expected at least 1, got {self.steps}.")

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def at(self, u: Float[Tensor, "b"], schedule: Schedule) -> Float[Tensor, "b"]:
        passed = torch.floor(u * self.steps)
        return self.high - (self.high - self.low) * passed / self.steps
