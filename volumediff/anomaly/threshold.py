"""Thresholds: from map to mask, each named after what was allowed to choose it.

A threshold that saw the truth of the volumes it is reported on is an oracle: an upper bound. The
others come from a `Calibration`, of healthy volumes or of validation volumes with truth, or from
the map itself; the latter marks something in every volume, healthy ones included.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._filters import inside_quantile
from volumediff.anomaly.calibration import Calibration
from volumediff.component import Component
from volumediff.metrics.detection import threshold_at_fpr
from volumediff.metrics.superlevel import STORED_SHARE, CountByThreshold

__all__ = [
    "BestThreshold",
    "Conformal",
    "FindingsPerVolume",
    "Fixed",
    "HealthyFPR",
    "Otsu",
    "OwnMap",
    "OwnQuantile",
    "Threshold",
    "ValidationThreshold",
]


@dataclass(frozen=True)
class Threshold(Component, ABC):
    """A rule for the threshold; the mask is `map > threshold`.

    `oracle` says whether it needs the truth, `calibrated` whether it needs a calibration.
    `of` has the threshold of one map, for rules that follow from the map alone, and `healthy_rate`
    the share of healthy voxels above it, for rules that fix one.
    """

    oracle: ClassVar[bool] = False
    calibrated: ClassVar[bool] = False

    @property
    def healthy_rate(self) -> float | None:
        """Share of healthy voxels above the threshold; None where the rule fixes none."""
        return None

    @property
    def least_volumes(self) -> int:
        """Fewest healthy calibration volumes that the rule works with."""
        return 1 if self.calibrated else 0

    @abstractmethod
    def __call__(self, calibration: Calibration | None) -> float | None:
        """The threshold; None where it needs a calibration and there is none, so no mask."""

    def of(
        self, a: Float[Tensor, "1 1 d h w"], *, foreground: Bool[Tensor, "1 1 d h w"]
    ) -> float | None:
        """The threshold that follows from the map itself; None where another rule decides."""
        return None


@dataclass(frozen=True)
class BestThreshold(Threshold):
    """The threshold with the best Dice on the volumes themselves: an oracle.

    There is never a mask from it; `metrics.detection.best_dice` reports its Dice.
    """

    oracle: ClassVar[bool] = True

    def __call__(self, calibration: Calibration | None) -> float | None:
        """None: only the truth knows."""
        return None


@dataclass(frozen=True)
class ValidationThreshold(Threshold):
    """The threshold with the best Dice on validation volumes with truth."""

    calibrated: ClassVar[bool] = True

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

    calibrated: ClassVar[bool] = True
    rate: float = 0.05
    min_volumes: int = 5

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ValueError(f"rate: expected a share in (0, 1), got {self.rate}.")

    @property
    def healthy_rate(self) -> float | None:
        """The rate."""
        return self.rate

    @property
    def least_volumes(self) -> int:
        """As configured."""
        return self.min_volumes

    def __call__(self, calibration: Calibration | None) -> float | None:
        """The (1 - q) quantile of the healthy maps, pooled over voxels."""
        if calibration is None:
            return None
        if calibration.volumes < self.min_volumes:
            raise ValueError(
                f"threshold healthy_fpr: expected at least {self.min_volumes} healthy calibration "
                f"volumes, got {calibration.volumes}; lower threshold.min_volumes, or use "
                "threshold=best for a map without a mask."
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


@dataclass(frozen=True)
class Conformal(Threshold):
    r"""The threshold that a new healthy volume respects with a given probability.

    Let t_i be the value that a share q of the voxels of healthy volume i exceeds. With the k-th
    smallest of t_1, ..., t_n and a new volume that is exchangeable with them,

    .. math:: P(t_{n+1} \le t_{(k)}) \ge p, \qquad k = \lceil (n + 1)\, p \rceil \le n,

    at any n and for any distribution: split conformal prediction with t as the score.
    `healthy_fpr` bounds the voxels of all volumes together and promises nothing about one of
    them. A fitted normalization makes calibration volumes slightly less normal than new ones.

    Arguments:
        probability: p, share of healthy volumes that respect it, in (0, 1)
        rate: q, share of the foreground that may lie above, in [0, 1)

    References:
        Vovk et al. (2005), Algorithmic Learning in a Random World; Angelopoulos and Bates (2021),
        arXiv:2107.07511
    """

    calibrated: ClassVar[bool] = True
    probability: float = 0.9
    rate: float = 0.001

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1 or not 0 <= self.rate < 1:
            raise ValueError(
                f"expected probability in (0, 1) and rate in [0, 1), got {self.probability} and "
                f"{self.rate}."
            )

    @property
    def least_volumes(self) -> int:
        """n with (n + 1) p <= n, rounded as k is."""
        return math.ceil(round(self.probability / (1 - self.probability), 9))

    def __call__(self, calibration: Calibration | None) -> float | None:
        """The k-th smallest of the volumes' own thresholds."""
        if calibration is None:
            return None
        n = len(calibration.each)
        # rounded, as (9 + 1) · 0.9 is 9.000000000000002
        k = math.ceil(round((n + 1) * self.probability, 9))
        if k > n:
            raise ValueError(
                f"threshold conformal: expected at least {self.least_volumes} healthy calibration "
                f"volumes for probability {self.probability:g}, got {n}; "
                "lower threshold.probability."
            )
        return sorted(threshold_at_fpr(h, self.rate) for h in calibration.each)[k - 1]


@dataclass(frozen=True)
class FindingsPerVolume(Threshold):
    r"""The threshold with at most a given number of findings per healthy volume on average.

    Findings are the components of the mask from the volume of the post step `min_component` on.
    Their number N_i(t) in healthy volume i rises and falls with the threshold t, so the loss is
    the largest number at t or any higher threshold, counted up to B,

    .. math:: L_i(t) = \min(B, \max_{t' \ge t} N_i(t')),

    and the threshold is the lowest with

    .. math:: \frac{\sum_i L_i(t) + B}{n + 1} \le \text{rate}, \qquad
              \frac{|\{i : L_i(t) \ge 1\}| + 1}{n + 1} \le \text{affected},

    but not below what any of the n volumes exceeds in more than `share` of its foreground: a map
    that is one large blob has few findings, too. This is conformal risk control: for a new
    healthy volume that is exchangeable with the n, its expected loss is at most `rate` and its
    probability of any finding at most `affected`, at any n and for any distribution. Opening and
    closing of the mask come after the count.

    Arguments:
        rate: findings per healthy volume, on average, above 0
        affected: largest share of healthy volumes with any finding, in (0, 1]
        share: largest share of the foreground of a healthy volume above the threshold, in
            (0, 0.05]
        limit: B, number up to which the findings of one volume are counted
        min_volumes: fewest healthy volumes that may stand for a population

    References:
        Angelopoulos et al. (2022), Conformal Risk Control, arXiv:2208.02814, theorem 1
    """

    calibrated: ClassVar[bool] = True
    rate: float = 1.0
    affected: float = 0.5
    share: float = 0.02
    limit: int = 3
    min_volumes: int = 5

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate: expected findings per volume above 0, got {self.rate}.")
        if not 0 < self.affected <= 1:
            raise ValueError(f"affected: expected a share in (0, 1], got {self.affected}.")
        if not 0 < self.share <= STORED_SHARE:
            raise ValueError(f"share: expected a share in (0, {STORED_SHARE}], got {self.share}.")
        if self.limit < 1:
            raise ValueError(f"limit: expected at least 1, got {self.limit}.")

    @property
    def least_volumes(self) -> int:
        """Fewest healthy volumes with which the conditions can be met."""
        # rounded, as 3 / 0.1 - 1 is 28.999999999999996
        needed = (self.limit / self.rate - 1, 1 / self.affected - 1)
        return max(1, self.min_volumes, *(math.ceil(round(n, 9)) for n in needed))

    def __call__(self, calibration: Calibration | None) -> float | None:
        """The lowest threshold that meets the conditions."""
        if calibration is None:
            return None
        if len(calibration.counts) < self.least_volumes:
            raise ValueError(
                f"threshold findings_per_volume: expected at least {self.least_volumes} healthy "
                f"calibration volumes, got {len(calibration.counts)}; add volumes, raise "
                "threshold.rate, lower threshold.min_volumes, or use threshold=best for a map "
                "without a mask."
            )
        lowest = max(threshold_at_fpr(h, self.share) for h in calibration.each)
        return max(lowest, self._by_findings(calibration.counts))

    def rate_decides(self, calibration: Calibration) -> bool:
        """Whether the threshold would be lower without the limit on findings per volume."""
        return self(calibration) != replace(self, rate=math.inf)(calibration)

    def _by_findings(self, counts: Sequence[CountByThreshold]) -> float:
        """The first value, from above, at which a condition fails; -inf where none does."""
        n, levels, more, first = len(counts), [], [], []
        for steps in counts:
            loss = np.minimum(steps.most_above, self.limit)
            levels.append(steps.levels)
            more.append(np.diff(loss, prepend=0))
            first.append(np.diff(loss >= 1, prepend=False))
        order = np.argsort(-np.concatenate(levels), kind="stable")
        level = np.concatenate(levels)[order]
        found = np.cumsum(np.concatenate(more)[order])
        affected = np.cumsum(np.concatenate(first)[order])
        most = (n + 1) * (1 + 1e-9)
        bad = (found + self.limit > self.rate * most) | (affected + 1 > self.affected * most)
        return float(level[bad.argmax()]) if bad.any() else -math.inf


@dataclass(frozen=True)
class OwnMap(Threshold):
    """A threshold that follows from the map it is applied to."""

    def __call__(self, calibration: Calibration | None) -> float | None:
        """None: it is another one for every volume."""
        return None

    @abstractmethod
    def of(self, a: Float[Tensor, "1 1 d h w"], *, foreground: Bool[Tensor, "1 1 d h w"]) -> float:
        """The threshold of a map."""


@dataclass(frozen=True)
class OwnQuantile(OwnMap):
    """The quantile of the map in its own foreground: the same share is marked in every volume.

    Arguments:
        quantile: share of the foreground below, in (0, 1); AnoFPDM (arXiv:2404.15683) takes 0.90
            to 0.98, larger where its curves over t range less, by a rule not known to us
    """

    quantile: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.quantile < 1:
            raise ValueError(f"quantile: expected a share in (0, 1), got {self.quantile}.")

    def of(self, a: Float[Tensor, "1 1 d h w"], *, foreground: Bool[Tensor, "1 1 d h w"]) -> float:
        """The quantile."""
        return inside_quantile(a, self.quantile, foreground=foreground)


@dataclass(frozen=True)
class Otsu(OwnMap):
    """The threshold that parts the foreground into two classes of least variance within.

    Arguments:
        bins: of the histogram between the lowest and the highest value

    References:
        Otsu (1979), A Threshold Selection Method from Gray-Level Histograms, eq. 14 to 19
    """

    bins: int = 256

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins: expected at least 2, got {self.bins}.")

    def of(self, a: Float[Tensor, "1 1 d h w"], *, foreground: Bool[Tensor, "1 1 d h w"]) -> float:
        """The upper edge of the lower class; the map's maximum if it is constant."""
        values = a[foreground].double().cpu()
        low, high = float(values.min()), float(values.max())
        if low == high:
            return high
        counts = torch.histc(values, self.bins, low, high)
        place = torch.arange(self.bins, dtype=torch.float64)
        below, total = counts.cumsum(0), counts.sum()
        moment = (counts * place).cumsum(0)
        # n_0 n_1 (μ_0 - μ_1)², up to a constant; the last split has an empty class
        between = (moment[-1] * below - total * moment).square() / (below * (total - below))
        best = int(torch.nan_to_num(between[:-1], nan=-1.0).argmax())
        return low + (best + 1) * (high - low) / self.bins
