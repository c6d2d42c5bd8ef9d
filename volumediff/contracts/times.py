"""The contract of densities of training times: keyed, inside their support, falling in u."""

from typing import Any

import torch

from volumediff.contracts.requirements import built, equal, require
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule
from volumediff.times._base import TimeDensity

__all__ = ["check_times"]

KEYS = (3, 7, 8, 11, 12, 900)


def check_times(cls: type, **arguments: Any) -> None:
    """Times of a key alone, in (low, high], the noisiest first."""
    density: TimeDensity = built(cls, arguments, {"steps": 4})
    low, high = density.support
    require(0 <= low < high <= 1, f"The support ({low}, {high}] is no interval of times.")
    u = torch.linspace(0, 1 - 1e-9, 200, dtype=torch.float64)
    for schedule in (LinearSchedule(), Cosine(zero_terminal_snr=True)):
        t = density.at(u, schedule)
        require(t.dtype == torch.float64, "Times must be in float64.")
        require(
            bool((t >= low).all() and (t <= high).all() and (t > 0).all()),
            f"Times are outside of the support ({low}, {high}].",
        )
        require(bool((t.diff() <= 1e-12).all()), "Times do not fall with the number they are of.")
        drawn = density.draw(KEYS, schedule)
        for i, key in enumerate(KEYS):
            alone = density.draw((key,), schedule)
            equal(alone, drawn[i : i + 1], "A sample's time depends on its batch.")
