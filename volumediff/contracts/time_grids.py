"""The contract of time grids: N + 1 falling times with exact ends, under every schedule."""

from typing import Any

import torch

from volumediff.contracts.requirements import built, refused, require
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.exploding import Exploding
from volumediff.schedules.linear import LinearSchedule
from volumediff.schedules.rectified import Rectified
from volumediff.time_grids import TimeGrid

__all__ = ["check_time_grid"]

SCHEDULES = (LinearSchedule(), Cosine(zero_terminal_snr=True), Rectified(), Exploding())
STARTS = (1.0, 0.8, 0.3)


def check_time_grid(cls: type, **arguments: Any) -> None:
    """From any start, which is the first time, down to 0."""
    grid: TimeGrid = built(cls, arguments, {"low": -6.0, "high": 9.0})
    for schedule in SCHEDULES:
        for steps in (1, 2, 7):
            for start in STARTS:
                times = grid.times(schedule, steps, start)
                text = f"{steps} steps from {start}"
                require(times.dtype == torch.float64, "Times must be in float64.")
                require(len(times) == steps + 1, f"There are {len(times)} times for {text}.")
                ends = (float(times[0]), float(times[-1]))
                require(ends == (start, 0.0), f"Times of {text} go from {ends[0]} to {ends[1]}.")
                require(bool((times.diff() < 0).all()), f"Times of {text} do not fall.")
    for start in (0.0, 1.5, float("nan")):
        text = f"A start of {start} is not refused."
        refused(lambda start=start: grid.times(SCHEDULES[0], 5, start), text, ValueError)
