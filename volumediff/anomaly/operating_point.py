"""What a threshold does in healthy volumes: voxels and findings, each volume left out in turn."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.threshold import Threshold
from volumediff.metrics.detection import rates

__all__ = ["HealthyRates", "largest_findings", "left_out"]


@dataclass(frozen=True)
class HealthyRates:
    """False alarms of a mask in healthy volumes.

    Arguments:
        volumes: healthy volumes that were looked at
        voxels: mean share of the foreground that is marked, before small parts are removed
        findings: mean number of findings
        affected: share of the volumes with any finding
    """

    volumes: int
    voxels: float
    findings: float
    affected: float


def left_out(threshold: Threshold, calibration: Calibration | None) -> HealthyRates | None:
    """Rates in each calibration volume at the threshold that the others choose.

    None where the threshold needs no calibration, where the others are too few to choose one, or
    where it marks so much that findings were not counted.
    """
    if calibration is None or not threshold.calibrated or not calibration.counts:
        return None
    n = len(calibration.counts)
    # the fewest volumes are asked of all of them, not of those without one
    least = getattr(threshold, "min_volumes", None)
    if least is not None:
        threshold = replace(threshold, min_volumes=min(least, n - 1))
    voxels, findings = [], []
    for i in range(n):
        try:
            value = threshold(calibration.without(i))
        except ValueError:  # the n volumes are just enough
            return None
        count = None if value is None else calibration.counts[i].at(value)
        if value is None or count is None:
            return None
        voxels.append(rates(calibration.each[i], value).fpr)
        findings.append(count)
    return HealthyRates(
        n, float(np.mean(voxels)), float(np.mean(findings)), float(np.mean(np.array(findings) > 0))
    )


def largest_findings(
    calibration: Calibration | None, threshold: float | None
) -> Float[np.ndarray, "n 3"] | None:
    """The highest peak, largest extent (ml) and largest mass (ml times the map's unit above the
    threshold) among the findings of each calibration volume, -inf where there are none.

    None without a threshold or a calibration, or below the part of the maps that was kept.
    """
    if calibration is None or threshold is None or not calibration.upper:
        return None
    rows = []
    for part in calibration.upper:
        found = part.clusters(threshold, volume_ml=calibration.finding_ml)
        if found is None:
            return None
        statistics = (found.peak, found.extent_ml, found.mass)
        rows.append([max(values, default=-np.inf) for values in statistics])
    return np.asarray(rows, dtype=np.float64)
