r"""Bootstrap over patients: what the metric would be with other patients from the same source.

Patients are drawn with replacement, all volumes of a patient together, the statistic is computed
anew, and the interval holds the middle `level` of the replicates (percentile bootstrap; Efron
1979). Voxels of one patient are not independent, so nothing below the patient is resampled.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from volumediff.randomness import key

__all__ = ["Interval", "bootstrap"]

Item = TypeVar("Item")


@dataclass(frozen=True)
class Interval:
    """A statistic with its interval.

    Arguments:
        value: the statistic of the sample itself
        low: lower end
        high: upper end
        level: probability mass between the ends
        replicates: replicates with a defined statistic, of those that were drawn; a replicate
            without any lesion has none
    """

    value: float
    low: float
    high: float
    level: float
    replicates: int


def bootstrap(
    items: Sequence[Item],
    statistic: Callable[[Sequence[Item]], float],
    *,
    patients: Sequence[Hashable] | None = None,
    seed: int = 0,
    replicates: int = 1000,
    level: float = 0.95,
) -> Interval:
    """Percentile interval of a statistic of the items, resampled by patient.

    Arguments:
        items: one entry per volume, for example histograms from `detection.coarse`
        statistic: a number from a list of items; nan where undefined
        patients: patient of each item; each item is its own patient by default
        seed: key of the draws
        replicates: number of draws
        level: probability mass of the interval
    """
    groups: dict[Hashable, list[Item]] = {}
    for item, patient in zip(items, patients or range(len(items)), strict=True):
        groups.setdefault(patient, []).append(item)
    members = list(groups.values())
    value = float(statistic(list(items))) if items else float("nan")
    rng = np.random.default_rng(key(seed, "bootstrap"))
    drawn = []
    for _ in range(replicates if members else 0):
        chosen = rng.integers(len(members), size=len(members))
        drawn.append(statistic([item for i in chosen for item in members[i]]))
    finite = np.asarray(drawn, dtype=float)
    finite = finite[np.isfinite(finite)]
    if len(finite) == 0:
        return Interval(value, float("nan"), float("nan"), level, 0)
    low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level, len(finite))
