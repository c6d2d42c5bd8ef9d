r"""Time grids: N + 1 times from `start` down to 0."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule

__all__ = ["checked_start", "log_snr_times", "uniform_times"]


def uniform_times(steps: int, *, start: float = 1.0) -> Float[Tensor, "n"]:
    r"""t_i = start (1 - i / N).

    Raises:
        ValueError: a start outside (0, 1]
    """
    return checked_start(start) * (1 - torch.arange(steps + 1, dtype=torch.float64) / steps)


def log_snr_times(
    schedule: Schedule, steps: int, *, limits: tuple[float, float], start: float = 1.0
) -> Float[Tensor, "n"]:
    r"""Times of equal steps in log-SNR, with `start` before and 0 after them.

    The log-SNR is infinite at t = 0, and at t = 1 where the terminal SNR is zero; the limits say
    between which values the grid is uniform. If the start's log-SNR is within them, the grid
    begins there.

    Raises:
        ValueError: a start outside (0, 1], or one that is cleaner than the upper limit
    """
    checked_start(start)
    first = float(schedule.log_snr(torch.tensor([start], dtype=torch.float64)))
    low, high = limits
    if first >= high:
        raise ValueError(
            f"start {start} has log-SNR {first:.2f}, expected less than the upper limit {high}."
        )
    inside = first >= low
    count = steps if inside else steps - 1
    nodes = torch.linspace(max(first, low), high, count, dtype=torch.float64)
    ends = torch.tensor([start, 0.0], dtype=torch.float64)
    times = schedule.time(nodes[1:] if inside else nodes)
    return torch.cat([ends[:1], times, ends[1:]])


def checked_start(start: float) -> float:
    """The start of a walk.

    Raises:
        ValueError: it is outside (0, 1]
    """
    if not (math.isfinite(start) and 0 < start <= 1):
        raise ValueError(f"expected a start in (0, 1], got {start}.")
    return start
