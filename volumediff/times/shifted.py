r"""Shifted training times: uniform ones, moved to more noise,

.. math:: t = \frac{r u}{1 + (r - 1) u}, \qquad r = \sqrt{\text{shift}},

which on the schedule rectified divides the SNR of every time by the shift.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule, check_shift
from volumediff.times._base import TimeDensity, check_interval

__all__ = ["ShiftedTimes"]


@dataclass(frozen=True)
class ShiftedTimes(TimeDensity):
    """Times of a shift, cut to an interval; for networks that read the time without it.

    A schedule with a shift does the same to the levels, and leaves the times as they are.

    Arguments:
        shift: factor > 0, as in the schedule rectified, where volumes of n voxels have n / m of
            Esser et al., and (n / 32³)^(2/3) in MAISI
        low: where the interval begins, itself excluded
        high: where it ends

    References:
        Esser et al. (2024), arXiv:2403.03206, eq. 23; Guo et al. (2024), MAISI, arXiv:2409.11169
    """

    shift: float = 9.0
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        check_interval(self.low, self.high)
        check_shift(self.shift)

    @property
    def support(self) -> tuple[float, float]:
        return self.low, self.high

    def at(self, u: Float[Tensor, "b"], schedule: Schedule) -> Float[Tensor, "b"]:
        r = self.shift**0.5
        low, high = (end / (r - (r - 1) * end) for end in (self.low, self.high))
        moved = high - (high - low) * u
        return (r * moved / (1 + (r - 1) * moved)).clamp(self.low, self.high)
