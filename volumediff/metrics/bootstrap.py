r"""Bootstrap over patients: what the metric would be with other patients from the same source.

Patients are drawn with replacement, all volumes of a patient together, the statistic is computed
anew, and the interval holds the middle `level` of the replicates (percentile bootstrap; Efron
1979). Voxels of one patient are not independent, so nothing below the patient is resampled. With
fewer than `MIN_PATIENTS` patients there is no interval: a resample of n patients holds a single
one of them in n^(1-n) of the cases, 50 % for 2, 11 % for 3, 1.6 % for 4 and .2 % for 5, so that
the ends of an interval would be the values of single patients. The cases say more then.

Two methods on the same patients are compared by the differences within each resample: what all
methods find hard cancels.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from jaxtyping import Float

from volumediff.randomness import key

__all__ = ["MIN_PATIENTS", "Interval", "Replicates", "bootstrap", "difference", "resampled"]

Item = TypeVar("Item")
MIN_PATIENTS = 5
LEVEL = 0.95


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


@dataclass(frozen=True, eq=False)
class Replicates:
    """A statistic of a sample and of its resamples.

    Arguments:
        value: of the sample itself
        draws: of each resample; nan where undefined
    """

    value: float
    draws: Float[np.ndarray, "r"]

    def interval(self, *, level: float = LEVEL) -> Interval:
        """The middle `level` of the replicates that are defined."""
        finite = self.draws[np.isfinite(self.draws)]
        if len(finite) == 0:
            return Interval(self.value, float("nan"), float("nan"), level, 0)
        low, high = np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])
        return Interval(self.value, float(low), float(high), level, len(finite))


def resampled(
    items: Sequence[Item],
    statistic: Callable[[Sequence[Item]], float],
    *,
    patients: Sequence[Hashable] | None = None,
    seed: int = 0,
    replicates: int = 1000,
) -> Replicates:
    """A statistic of the items and of resamples by patient; none with too few patients.

    Arguments:
        items: one entry per volume, for example histograms from `detection.coarse`
        statistic: a number from a list of items; nan where undefined
        patients: patient of each item; each item is its own patient by default
        seed: key of the draws: equal for equal patients in equal order, whatever the items are
        replicates: number of draws
    """
    groups: dict[Hashable, list[Item]] = {}
    for item, patient in zip(items, patients or range(len(items)), strict=True):
        groups.setdefault(patient, []).append(item)
    members = list(groups.values())
    value = float(statistic(list(items))) if items else float("nan")
    rng = np.random.default_rng(key(seed, "bootstrap"))
    drawn = []
    for _ in range(replicates if len(members) >= MIN_PATIENTS else 0):
        chosen = rng.integers(len(members), size=len(members))
        drawn.append(statistic([item for i in chosen for item in members[i]]))
    return Replicates(value, np.asarray(drawn, dtype=float))


def bootstrap(
    items: Sequence[Item],
    statistic: Callable[[Sequence[Item]], float],
    *,
    patients: Sequence[Hashable] | None = None,
    seed: int = 0,
    replicates: int = 1000,
    level: float = LEVEL,
) -> Interval:
    """Percentile interval of a statistic of the items, resampled by patient.

    Arguments:
        items, statistic, patients, seed, replicates: as for `resampled`
        level: probability mass of the interval
    """
    found = resampled(items, statistic, patients=patients, seed=seed, replicates=replicates)
    return found.interval(level=level)


def difference(mine: Replicates, theirs: Replicates) -> Replicates:
    """Mine minus theirs, resample by resample: both of the same patients under the same seed.

    Raises:
        ValueError: another number of resamples
    """
    if len(mine.draws) != len(theirs.draws):
        raise ValueError(
            f"expected resamples of the same patients, got {len(mine.draws)} and "
            f"{len(theirs.draws)} of them."
        )
    return Replicates(mine.value - theirs.value, mine.draws - theirs.draws)
