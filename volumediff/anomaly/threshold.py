"""Thresholds: the number above which a map is a mask, and what was allowed to choose it.

A threshold that saw the truth of the volumes it is reported on is an oracle: an upper bound. All
others come from a `Calibration`: from healthy volumes, or from validation volumes with truth.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly.calibration import Calibration
from volumediff.metrics.detection import threshold_at_fpr

__all__ = ["Best", "Fixed", "HealthyFPR", "Threshold", "Validation"]


@dataclass(frozen=True)
class Threshold(ABC):
    """A rule for the threshold; the mask is `map > threshold`."""

    oracle: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, calibration: Calibration | None) -> float | None:
        """The threshold; None where it needs a calibration and there is none, so no mask."""


@dataclass(frozen=True)
class Best(Threshold):
    """The threshold with the best Dice on the volumes themselves: an oracle.

    There is never a mask from it; `metrics.detection.best_dice` reports its Dice.
    """

    oracle: ClassVar[bool] = True

    def __call__(self, calibration: Calibration | None) -> float | None:
        """None: only the truth knows."""
        return None


@dataclass(frozen=True)
class Validation(Threshold):
    """The threshold with the best Dice on validation volumes with truth."""

    def __call__(self, calibration: Calibration | None) -> float | None:
        """The threshold that validation chose."""
        if calibration is None:
            return None
        if calibration.validation_threshold is None:
            raise ValueError(
                "threshold validation: the calibration has seen no validation volumes with truth; "
                "add them with calibrate.validate, or use the threshold healthy_fpr."
            )
        return calibration.validation_threshold


@dataclass(frozen=True)
class HealthyFPR(Threshold):
    """The threshold that a given share of healthy foreground voxels exceeds.

    Arguments:
        rate: share q of healthy voxels, in (0, 1)
        min_volumes: fewest healthy volumes that may stand for a population
    """

    rate: float = 0.05
    min_volumes: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate: expected a share in (0, 1), got {self.rate}.")

    def __call__(self, calibration: Calibration | None) -> float | None:
        """The (1 - q) quantile of the healthy maps, pooled over voxels."""
        if calibration is None:
            return None
        if calibration.volumes < self.min_volumes:
            raise ValueError(
                f"threshold healthy_fpr: expected at least {self.min_volumes} healthy calibration "
                f"volumes, got {calibration.volumes}; lower threshold.min_volumes, or ask for a "
                "map without a mask with threshold=best."
            )
        return threshold_at_fpr(calibration.healthy, self.rate)


@dataclass(frozen=True)
class Fixed(Threshold):
    """A given number, in units of the map.

    Arguments:
        value: the threshold
    """

    value: float

    def __call__(self, calibration: Calibration | None) -> float | None:
        """The number."""
        return self.value
