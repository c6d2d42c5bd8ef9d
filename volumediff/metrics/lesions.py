r"""Lesion-wise detection: connected components instead of voxels.

Lesions are the 26-connected components of the truth, candidates those of the mask. A lesion is
detected when more than a given share of its voxels lies in the mask; a candidate that touches no
lesion is a false positive. Large lesions dominate every voxel-wise metric; here each lesion counts
once, and detection is reported per size.

Where a map is given, a candidate has its peak as score s, and a detected lesion that of the best
candidate that touches it. Sweeping a threshold τ over the scores gives the free-response ROC,

    sensitivity(τ) = |{lesions: s >= τ}| / |lesions|  against  |{false: s >= τ}| / volumes.

It ends where the mask ends: candidates are those of one mask, whose own threshold no test label
has chosen.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.metrics.components import labelled

__all__ = [
    "FROC_RATES",
    "SIZES_ML",
    "Froc",
    "Lesions",
    "Stratum",
    "detection_rate",
    "false_positives",
    "froc",
    "froc_score",
    "lesion_f1",
    "lesion_recall",
    "lesions",
    "stratified",
]

# Ends of the size bins, with the diameter of a ball of that volume: 0.1 ml is 5.8 mm, 1 ml is
# 12.4 mm, 10 ml is 26.7 mm. Decades, so that punctate, small, medium and large mean the same in
# every data set; quantiles of the data at hand would not.
SIZES_ML = (0.1, 1.0, 10.0)
# False positives per volume at which FROC is summarized (LUNA16, Setio et al. 2017).
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Lesions:
    """Lesions of one volume.

    Arguments:
        volumes_ml: size of each lesion
        recalls: share of the voxels of each lesion that lie in the mask
        detected: whether each lesion was found
        false_positives: candidates that touch no lesion
        scores: of each lesion, -inf where it was not found; empty without a map
        false_scores: of each false positive; empty without a map
    """

    volumes_ml: tuple[float, ...]
    recalls: tuple[float, ...]
    detected: tuple[bool, ...]
    false_positives: int
    scores: tuple[float, ...] = ()
    false_scores: Float[np.ndarray, "k"] = field(
        default_factory=lambda: np.zeros(0), compare=False, repr=False
    )


@dataclass(frozen=True)
class Stratum:
    """Lesions of one size range, `low <= volume < high`.

    Arguments:
        low_ml, high_ml: ends of the range
        lesions: how many there are
        detected: how many of them were found
        recall: mean share of their voxels in the mask; nan without lesions
    """

    low_ml: float
    high_ml: float
    lesions: int
    detected: int
    recall: float

    @property
    def rate(self) -> float:
        """Share of the lesions that were found; nan without lesions."""
        return self.detected / self.lesions if self.lesions else float("nan")


def lesions(
    mask: Bool[Tensor, "d h w"],
    truth: Bool[Tensor, "d h w"],
    *,
    spacing_mm: tuple[float, float, float],
    share: float = 0.0,
    scores: Float[Tensor, "d h w"] | None = None,
) -> Lesions:
    """Matches the components of mask and truth.

    Arguments:
        mask: what the method marked
        truth: lesion voxels
        spacing_mm: voxel size along d, h, w
        share: a lesion is detected when more than this share of its voxels is marked, in [0, 1);
            0 accepts any overlap
        scores: the map that the mask was made of
    """
    from scipy import ndimage  # heavy import

    if not 0 <= share < 1:
        raise ValueError(f"share: expected a number in [0, 1), got {share}; 0 is any overlap.")
    m, y = mask.cpu().numpy(), truth.cpu().numpy()
    labels, n = labelled(y)
    size = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    hits = np.bincount(labels[m], minlength=n + 1)[1:]
    detected = hits > share * size
    candidates, k = labelled(m)
    pairs = np.unique(np.stack([labels[m & y], candidates[m & y]]), axis=1) - 1
    false = np.setdiff1d(np.arange(k), pairs[1])
    peaks, best = np.zeros(0), np.zeros(0)
    if scores is not None:
        a = scores.detach().cpu().numpy()
        peaks = np.asarray(ndimage.maximum(a, candidates, np.arange(1, k + 1)), dtype=float)
        best = np.full(n, -np.inf)
        np.maximum.at(best, pairs[0], peaks[pairs[1]])
        best[~detected] = -np.inf
        peaks = peaks[false]
    voxel_ml = spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
    return Lesions(
        volumes_ml=tuple((size * voxel_ml).tolist()),
        recalls=tuple((hits / np.maximum(size, 1)).tolist()),
        detected=tuple(detected.tolist()),
        false_positives=len(false),
        scores=tuple(best.tolist()),
        false_scores=peaks,
    )


def detection_rate(cases: Iterable[Lesions]) -> float:
    """Share of all lesions that were found; nan without lesions."""
    found = [d for case in cases for d in case.detected]
    return sum(found) / len(found) if found else float("nan")


def lesion_recall(cases: Iterable[Lesions]) -> float:
    """Mean over lesions of the share of their voxels in the mask; nan without lesions."""
    recalls = [r for case in cases for r in case.recalls]
    return sum(recalls) / len(recalls) if recalls else float("nan")


def false_positives(cases: Sequence[Lesions]) -> float:
    """False positive components per volume; nan without volumes."""
    return sum(c.false_positives for c in cases) / len(cases) if cases else float("nan")


def lesion_f1(cases: Sequence[Lesions]) -> float:
    """2 TP / (2 TP + FP + FN) over components, pooled over volumes; nan without lesions."""
    found = [d for case in cases for d in case.detected]
    if not found:
        return float("nan")
    wrong = sum(c.false_positives for c in cases)
    return 2 * sum(found) / (sum(found) + len(found) + wrong)


def stratified(cases: Iterable[Lesions], *, edges_ml: Sequence[float] = SIZES_ML) -> list[Stratum]:
    """Detection per size range; sizes below the first and above the last edge have their own."""
    every = [t for c in cases for t in zip(c.volumes_ml, c.detected, c.recalls, strict=True)]
    strata = []
    for low, high in pairwise([0.0, *edges_ml, float("inf")]):
        inside = [(d, r) for v, d, r in every if low <= v < high]
        recall = sum(r for _, r in inside) / len(inside) if inside else float("nan")
        strata.append(Stratum(low, high, len(inside), sum(d for d, _ in inside), recall))
    return strata


@dataclass(frozen=True, eq=False)
class Froc:
    """The free-response ROC, from the highest threshold down: its corners.

    Arguments:
        false_positives: per volume, never falling; starts at 0
        sensitivity: share of the lesions that are found, never falling
    """

    false_positives: Float[np.ndarray, "k"]
    sensitivity: Float[np.ndarray, "k"]


def froc(cases: Sequence[Lesions]) -> Froc | None:
    """The curve over volumes with scores; None without lesions or without scores."""
    scored = [c for c in cases if len(c.scores) == len(c.volumes_ml)]
    scored = [c for c in scored if len(c.false_scores) == c.false_positives]
    true = np.array([s for c in scored for s in c.scores])
    if len(scored) < len(cases) or len(true) == 0:
        return None
    false = np.concatenate([c.false_scores for c in scored])
    thresholds, hits = np.unique(true[np.isfinite(true)], return_counts=True)
    # Nothing is found between two scores of lesions: corners there, no sorting of the many false.
    above = _at_least(thresholds, false, side="left")
    reached = _at_least(thresholds, false, side="right")
    found = np.cumsum(hits[::-1])
    corners = np.stack([above[::-1], reached[::-1]], axis=1).ravel()
    heights = np.stack([found - hits[::-1], found], axis=1).ravel()
    last = found[-1] if len(found) else 0
    return Froc(
        np.concatenate([[0], corners, [len(false)]]) / len(scored),
        np.concatenate([[0], heights, [last]]) / len(true),
    )


def _at_least(
    thresholds: np.ndarray, scores: np.ndarray, *, side: Literal["left", "right"]
) -> np.ndarray:
    """How many scores reach each of the ascending thresholds; "left" leaves out those equal."""
    below = np.bincount(
        np.searchsorted(thresholds, scores, side=side), minlength=len(thresholds) + 1
    )
    return len(scores) - np.cumsum(below)[:-1]


def froc_score(cases: Sequence[Lesions], *, rates: Sequence[float] = FROC_RATES) -> float:
    """Mean sensitivity at given false positives per volume, linear between operating points.

    Beyond the last operating point it stays what it was there; nan without lesions or scores.
    """
    curve = froc(cases)
    if curve is None:
        return float("nan")
    return float(np.mean(np.interp(rates, curve.false_positives, curve.sensitivity)))
