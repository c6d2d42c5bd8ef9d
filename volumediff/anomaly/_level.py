"""Noise levels of components, as times or as log-SNRs."""

from dataclasses import dataclass

import torch

from volumediff.schedules._base import Schedule

__all__ = ["Level", "read_levels"]


@dataclass(frozen=True)
class Level:
    """A noise level, as exactly one of a time and a log-SNR.

    Arguments:
        level: time t in (0, 1]
        log_snr: log(α²/σ²), the same corruption under any schedule
    """

    level: float | None = None
    log_snr: float | None = None

    def __post_init__(self) -> None:
        if (self.level is None) == (self.log_snr is None):
            raise ValueError(
                f"expected exactly one of level and log_snr, got {self.level} and {self.log_snr}."
            )
        if self.level is not None and not 0 < self.level <= 1:
            raise ValueError(f"level: expected a time in (0, 1], got {self.level}.")

    def time(self, schedule: Schedule) -> float:
        """The time under a schedule.

        Raises:
            ValueError: the schedule never gets that noisy
        """
        if self.log_snr is None:
            return float(self.level)
        return float(schedule.time(torch.tensor([self.log_snr], dtype=torch.float64)))


def read_levels(levels: tuple[float, ...], log_snrs: tuple[float, ...]) -> list[Level]:
    """Several levels, all given as times or all as log-SNRs.

    Raises:
        ValueError: both are given, or a level out of range
    """
    if levels and log_snrs:
        raise ValueError("expected levels or log_snrs, got both; give one of them.")
    return [Level(level=t) for t in levels] + [Level(log_snr=s) for s in log_snrs]
