r"""Time grids: which times a sampler of N steps visits, N + 1 of them from `start` down to 0.

Grids of noise levels are uniform in a function of the level between two limits, since the log-SNR
is infinite at t = 0 and, where the terminal SNR is zero, at t = 1. If the level of the start is
within the limits, they begin there; if it is noisier, the start comes before the first of them.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.component import Component
from volumediff.schedules._base import Schedule, check_noise_levels, check_shift

__all__ = [
    "KarrasTimeGrid",
    "LogSNRTimeGrid",
    "ShiftedTimeGrid",
    "TimeGrid",
    "UniformTimeGrid",
    "checked_start",
]


@dataclass(frozen=True)
class TimeGrid(Component, ABC):
    """Times of a walk from a start to 0."""

    @abstractmethod
    def times(self, schedule: Schedule, steps: int, start: float = 1.0) -> Float[Tensor, "n"]:
        """N + 1 times in float64, falling from `start` to 0, both exact.

        Arguments:
            schedule: of the kernel, for grids of noise levels
            steps: N >= 1
            start: in (0, 1]

        Raises:
            ValueError: a start outside (0, 1], or one that is cleaner than the grid's last level
        """


class UniformTimeGrid(TimeGrid):
    """Equal steps of time."""

    def times(self, schedule: Schedule, steps: int, start: float = 1.0) -> Float[Tensor, "n"]:
        return checked_start(start) * _falling(steps)


@dataclass(frozen=True)
class ShiftedTimeGrid(TimeGrid):
    r"""More steps at high noise: equal steps of u, of which the times are those of a shift,

    .. math:: t = \frac{r u}{1 + (r - 1) u}, \qquad r = \sqrt{\text{shift}}.

    On the schedule rectified that is the uniform grid of the same schedule with this shift, for
    networks that read the time without it.

    Arguments:
        shift: factor > 0 by which the SNR of a rectified flow is divided, as in the schedule

    References:
        Esser et al. (2024), arXiv:2403.03206, eq. 23; Guo et al. (2024), MAISI, arXiv:2409.11169
    """

    shift: float = 9.0

    def __post_init__(self) -> None:
        check_shift(self.shift)

    def times(self, schedule: Schedule, steps: int, start: float = 1.0) -> Float[Tensor, "n"]:
        r = self.shift**0.5
        first = checked_start(start) / (r - (r - 1) * start)
        u = first * _falling(steps)
        times = r * u / (1 + (r - 1) * u)
        times[0] = start  # rounding apart it is
        return times


@dataclass(frozen=True)
class LogSNRTimeGrid(TimeGrid):
    """Equal steps of the log-SNR between two limits, and one to 0.

    Arguments:
        low: of the noisiest level
        high: of the last one before 0
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"expected low below high, got {self.low} and {self.high}.")

    def times(self, schedule: Schedule, steps: int, start: float = 1.0) -> Float[Tensor, "n"]:
        first, count = _first_level(schedule, steps, start, self.low, self.high)
        nodes = torch.linspace(max(first, self.low), self.high, count, dtype=torch.float64)
        return _walk(schedule, nodes, start, steps)


@dataclass(frozen=True)
class KarrasTimeGrid(TimeGrid):
    r"""Steps of the noise S = sigma / alpha that get finer towards 0,

    .. math:: S_i = \Big(S_0^{1 / \rho} + \frac{i}{N - 1}
              \big(S_{min}^{1 / \rho} - S_0^{1 / \rho}\big)\Big)^\rho, \quad i < N,

    and one to 0.

    Arguments:
        sigma_min: of the last level before 0, for data of unit variance
        sigma_max: of the noisiest one
        rho: how much finer, at least 1

    References:
        Karras et al. (2022), arXiv:2206.00364, eq. 5
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_noise_levels(self.sigma_min, self.sigma_max, self.rho)

    def times(self, schedule: Schedule, steps: int, start: float = 1.0) -> Float[Tensor, "n"]:
        low, high = (-2 * math.log(s) for s in (self.sigma_max, self.sigma_min))
        first, count = _first_level(schedule, steps, start, low, high)
        ends = [math.exp(-level / 2 / self.rho) for level in (max(first, low), high)]
        nodes = -2 * self.rho * torch.linspace(*ends, count, dtype=torch.float64).log()
        return _walk(schedule, nodes, start, steps)


def checked_start(start: float) -> float:
    """The start of a walk.

    Raises:
        ValueError: it is outside (0, 1]
    """
    if not (math.isfinite(start) and 0 < start <= 1):
        raise ValueError(f"expected a start in (0, 1], got {start}.")
    return start


def _falling(steps: int) -> Float[Tensor, "n"]:
    """1 - i / N."""
    return 1 - torch.arange(steps + 1, dtype=torch.float64) / steps


def _first_level(
    schedule: Schedule, steps: int, start: float, low: float, high: float
) -> tuple[float, int]:
    """The log-SNR of the start, and how many levels there are between the limits, it or none of
    them included."""
    first = float(schedule.log_snr(torch.tensor([checked_start(start)], dtype=torch.float64)))
    if first >= high:
        raise ValueError(
            f"start {start} has log-SNR {first:.2f}, expected less than the upper limit {high}."
        )
    return first, steps if first >= low else steps - 1


def _walk(
    schedule: Schedule, nodes: Float[Tensor, "m"], start: float, steps: int
) -> Float[Tensor, "n"]:
    """The start, the times of the levels after it, and 0."""
    ends = torch.tensor([start, 0.0], dtype=torch.float64)
    times = schedule.time(nodes[1:] if len(nodes) == steps else nodes)
    return torch.cat([ends[:1], times, ends[1:]])
