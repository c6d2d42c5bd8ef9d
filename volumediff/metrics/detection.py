r"""Voxel-wise detection in constant memory: one histogram of map values per class.

A volume of 256³ voxels has too many scores to sort, so a map is first reduced to counts per bin.
The bins are the floating-point numbers cut to 13 bits of mantissa: their order is the order of the
scores, their relative width is 2⁻¹³ at every magnitude, and they are the same for every map, so
that nothing is fitted, heavy tails lose nothing and the histograms of patients and of processes
simply add. With TP(k), FP(k) the counts at and above bin k, P and N the totals,

    recall R_k = TP(k) / P,   precision Π_k = TP(k) / (TP(k) + FP(k)),
    AP = Σ_k (R_k - R_{k+1}) Π_k,   AUROC = P(s⁺ > s⁻) + P(s⁺ = s⁻) / 2,
    Dice_k = 2 TP(k) / (TP(k) + FP(k) + P).

torchmetrics' binned curves compare every voxel with every threshold, a thousand passes over the
volume; here it is one.

Without lesion voxels AP, AUROC and Dice are nan, without healthy voxels AUROC is nan: such volumes
are counted by false positives instead.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = [
    "BestDice",
    "Histogram",
    "Rates",
    "auroc",
    "average_precision",
    "best_dice",
    "coarse",
    "histogram",
    "prevalence",
    "rates",
    "threshold_at_fpr",
    "total",
    "volume_auroc",
]

_MANTISSA = 13  # bits kept of the 23; relative bin width 2^-13 = 1.2e-4
_SHIFT = 23 - _MANTISSA
_FLIP = 0x7FFFFFFF  # reverses the order of negative numbers, whose bits count downwards


@dataclass(frozen=True, eq=False)
class Histogram:
    """Counts of map values per bin, for healthy and for abnormal voxels.

    Arguments:
        keys: occupied bins, ascending
        healthy: voxels outside the lesions per bin
        abnormal: voxels of the lesions per bin
    """

    keys: np.ndarray
    healthy: np.ndarray
    abnormal: np.ndarray

    @property
    def edges(self) -> np.ndarray:
        """The smallest score of each bin, float32."""
        bits = self.keys.astype(np.int64) << _SHIFT
        bits = np.where(bits < 0, bits ^ _FLIP, bits)
        return bits.astype(np.int32).view(np.float32)

    def __add__(self, other: "Histogram") -> "Histogram":
        if self.keys is other.keys:
            healthy, abnormal = self.healthy + other.healthy, self.abnormal + other.abnormal
            return Histogram(self.keys, healthy, abnormal)
        keys = np.union1d(self.keys, other.keys)
        return Histogram(
            keys,
            _spread(self.healthy, self.keys, keys) + _spread(other.healthy, other.keys, keys),
            _spread(self.abnormal, self.keys, keys) + _spread(other.abnormal, other.keys, keys),
        )


def _spread(counts: np.ndarray, keys: np.ndarray, onto: np.ndarray) -> np.ndarray:
    result = np.zeros(len(onto), dtype=np.int64)
    result[np.searchsorted(onto, keys)] = counts
    return result


def histogram(
    scores: Float[Tensor, "*shape"],
    truth: Bool[Tensor, "*shape"] | None = None,
    *,
    foreground: Bool[Tensor, "*shape"] | None = None,
) -> Histogram:
    """Histogram of a map inside the foreground; without truth all voxels are healthy.

    Raises:
        ValueError: a score inside the foreground is not finite
    """
    inside = torch.ones_like(scores, dtype=torch.bool) if foreground is None else foreground
    values = scores[inside].detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(values).all()):
        bad = int((~torch.isfinite(values)).sum())
        raise ValueError(f"expected finite map values, got {bad} NaN or Inf; check the model.")
    bits = (values + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    bits = torch.where(bits < 0, bits ^ _FLIP, bits) >> _SHIFT
    low = int(bits.min()) if bits.numel() else 0
    index = bits - low  # at most 2^22 bins between the lowest and the highest
    every = torch.bincount(index)
    abnormal = torch.zeros_like(every)
    if truth is not None:
        abnormal = torch.bincount(index[truth[inside].cpu()], minlength=len(every))
    occupied = every.nonzero().flatten()
    every, abnormal = every[occupied], abnormal[occupied]
    keys = (occupied + low).int()
    return Histogram(keys.numpy(), (every - abnormal).numpy(), abnormal.numpy())


def total(histograms: Iterable[Histogram]) -> Histogram:
    """Sum over volumes: pooled statistics, in which large volumes and lesions weigh more."""
    parts = list(histograms)
    if not parts:
        empty = np.zeros(0, dtype=np.int64)
        return Histogram(empty.astype(np.int32), empty, empty)
    return reduce(Histogram.__add__, parts)


def coarse(histograms: Sequence[Histogram], *, bins: int = 4096) -> list[Histogram]:
    """The same histograms on about `bins` common bins, so that sums of them are fast.

    No new bin of several old ones holds more than 2 / bins of the pooled healthy voxels or of the
    pooled lesion voxels, which bounds the change of AP, AUROC and Dice.
    """
    pooled = total(histograms)
    mass = np.zeros(len(pooled.keys))
    for counts in (pooled.healthy, pooled.abnormal):
        mass += np.cumsum(counts) / max(int(counts.sum()), 1)
    group = np.floor(mass * bins / 2)
    first = np.flatnonzero(np.diff(group, prepend=-1.0))  # each group keeps its lowest old bin
    keys = pooled.keys[first]
    result = []
    for h in histograms:
        index = np.searchsorted(keys, h.keys, side="right") - 1
        counts = [np.zeros(len(keys), dtype=np.int64) for _ in range(2)]
        np.add.at(counts[0], index, h.healthy)
        np.add.at(counts[1], index, h.abnormal)
        result.append(Histogram(keys, *counts))
    return result


def _above(h: Histogram) -> tuple[np.ndarray, np.ndarray]:
    """TP and FP for the thresholds "at and above bin k", from the highest bin down."""
    return np.cumsum(h.abnormal[::-1]), np.cumsum(h.healthy[::-1])


def prevalence(h: Histogram) -> float:
    """Share of lesion voxels, the AP of a map that knows nothing; nan without voxels."""
    voxels = int(h.abnormal.sum() + h.healthy.sum())
    return int(h.abnormal.sum()) / voxels if voxels else float("nan")


def average_precision(h: Histogram) -> float:
    """Area under the precision-recall curve, as a sum without interpolation."""
    tp, fp = _above(h)
    if len(tp) == 0 or tp[-1] == 0:
        return float("nan")
    return float(np.sum(np.diff(tp, prepend=0) / tp[-1] * (tp / np.maximum(tp + fp, 1))))


def auroc(h: Histogram) -> float:
    """Area under the ROC curve; ties count one half."""
    tp, fp = _above(h)
    if len(tp) == 0 or tp[-1] == 0 or fp[-1] == 0:
        return float("nan")
    middle = tp - np.diff(tp, prepend=0) / 2
    return float(np.sum(np.diff(fp, prepend=0) / fp[-1] * (middle / tp[-1])))


@dataclass(frozen=True)
class BestDice:
    """Dice at the threshold that the truth itself chose: an upper bound, never a result.

    Arguments:
        dice: largest Dice over all thresholds
        threshold: voxels above it (`map > threshold`) form the best mask
        oracle: always true: the threshold saw the truth
    """

    dice: float
    threshold: float
    oracle: bool = True


def best_dice(h: Histogram) -> BestDice:
    """Largest Dice over thresholds, from the counts alone."""
    tp, fp = _above(h)
    if len(tp) == 0 or tp[-1] == 0:
        return BestDice(float("nan"), float("nan"))
    dice = 2 * tp / (tp + fp + tp[-1])
    best = int(np.argmax(dice))
    edge = h.edges[::-1][best]
    return BestDice(float(dice[best]), float(np.nextafter(edge, np.float32(-np.inf))))


@dataclass(frozen=True)
class Rates:
    """Shares of lesion voxels (`tpr`) and of healthy voxels (`fpr`) above a threshold."""

    tpr: float
    fpr: float


def rates(h: Histogram, threshold: float) -> Rates:
    """True and false positive rate of `map > threshold`, to the resolution of a bin."""
    above = h.edges > threshold
    positives, negatives = int(h.abnormal.sum()), int(h.healthy.sum())
    return Rates(
        int(h.abnormal[above].sum()) / positives if positives else float("nan"),
        int(h.healthy[above].sum()) / negatives if negatives else float("nan"),
    )


def threshold_at_fpr(h: Histogram, rate: float) -> float:
    """The smallest threshold, to a bin, with at most a share `rate` of healthy voxels above it.

    Raises:
        ValueError: no healthy voxels, or a rate outside [0, 1)
    """
    healthy = int(h.healthy.sum())
    if healthy == 0 or not 0 <= rate < 1:
        raise ValueError(
            f"expected healthy voxels and a rate in [0, 1), got {healthy} voxels and {rate}."
        )
    _, fp = _above(h)
    allowed = int(np.searchsorted(fp, rate * healthy, side="right"))  # bins from the top
    if allowed == len(fp):
        return float(np.nextafter(h.edges[0], np.float32(-np.inf)))
    # everything below the lowest allowed bin is at most the upper end of the next one
    key = h.keys[::-1][allowed] + 1
    upper = Histogram(np.asarray([key]), fp, fp).edges[0]
    return float(np.nextafter(upper, np.float32(-np.inf)))


def volume_auroc(scores: Sequence[float], abnormal: Sequence[bool]) -> float:
    """AUROC of volume scores; nan unless there are healthy and abnormal volumes.

    P(s⁺ > s⁻) + P(s⁺ = s⁻) / 2 over all pairs: volumes are few, and scikit-learn's checks of its
    arguments would take most of a bootstrap.
    """
    values, positive = np.asarray(scores, dtype=float), np.asarray(abnormal, dtype=bool)
    above = values[positive][:, None] - values[~positive]
    return float(np.mean((above > 0) + 0.5 * (above == 0))) if above.size else float("nan")
