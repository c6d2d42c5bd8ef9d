"""False alarms in healthy volumes: those evaluated, else the calibration's, left out in turn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from volumediff.evaluation.measure import Measured

__all__ = ["HealthyRates", "healthy_rates"]


@dataclass(frozen=True)
class HealthyRates:
    """What a method marks in healthy volumes.

    Arguments:
        volumes: healthy volumes that were looked at
        evaluated: whether they are among the evaluated; else they are those of the calibration,
            each at the threshold that the others choose
        voxels: mean share of the foreground that is marked
        findings: mean number of findings
        affected: share of the volumes with any finding
    """

    volumes: int
    evaluated: bool
    voxels: float
    findings: float
    affected: float

    @property
    def sentence(self) -> str:
        """The rates in words."""
        how = "evaluated" if self.evaluated else "calibration, each left out in turn"
        noun = "volume" if self.volumes == 1 else "volumes"
        return (
            f"{self.findings:.2g} findings per healthy volume, {self.affected:.0%} of them with "
            f"any, {self.voxels:.2%} of their voxels marked ({self.volumes} {noun}, {how})"
        )


def healthy_rates(cases: Sequence[Measured], facts: Mapping[str, Any]) -> HealthyRates | None:
    """The rates of a method; None without masks, or where nothing is known of healthy volumes.

    Arguments:
        cases: the evaluated volumes
        facts: from the JSON beside one of the maps
    """
    healthy = [c for c in cases if not c.abnormal and c.lesions is not None]
    if healthy:
        found = np.array([c.lesions.candidates for c in healthy if c.lesions is not None])
        voxels = float(np.mean([c.marked for c in healthy]))
        return HealthyRates(
            len(healthy), True, voxels, float(found.mean()), float((found > 0).mean())
        )
    known = facts.get("healthy_rates")
    return None if not known else HealthyRates(evaluated=False, **known)
