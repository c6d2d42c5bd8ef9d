"""Uniform training times."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule
from volumediff.times._base import TimeDensity, check_interval

__all__ = ["Uniform"]


@dataclass(frozen=True)
class Uniform(TimeDensity):
    """All times of an interval alike.

    Arguments:
        low: where the interval begins, itself excluded; 0.999 for a model of maps that is only
            asked at t = 1
        high: where it ends; 0.8 for methods that never go higher
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def at(self, u: Float[Tensor, "b"], schedule: Schedule) -> Float[Tensor, "b"]:
        return self.high - (self.high - self.low) * u
