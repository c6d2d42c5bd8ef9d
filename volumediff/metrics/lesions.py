r"""Lesion-wise detection: connected components instead of voxels.

Lesions L_i are the 26-connected components of the truth, candidates C_j those of the mask: the
same components that findings are. Touching a lesion is not finding it, or a mask over the whole
organ would find all. A lesion counts as found by overlap, in two ways that are both reported. With
U_i the union of the candidates that touch L_i and L the union of all lesions,

    by IoU:    |L_i ∩ C_j| / |L_i ∪ C_j| >= 0.1  with the candidate C_j that is matched to L_i,
    by recall: |L_i ∩ U_i| / |L_i| >= 0.1  and  |U_i outside of L| <= 0.7 |U_i|.

Candidates are matched one to one, the largest IoU first. 0.1 is the IoU at which detection in 3D
is compared (nnDetection), the two shares of the second rule are alpha and beta of MSSEG: a lesion
is not found by a mask that is mostly elsewhere. A lesion is *merged* that shares a candidate with
another lesion, and *split* that several candidates touch.

A candidate is a false positive if it touches no lesion, or lies to more than 0.7 outside of all
lesions. Since one component can be as large as the organ, volume costs, too: with V the marked
volume, T the volume of the lesions (0 in a healthy volume), per volume of the sample,

    excess = max(0, V - 3 T),   volume-matched false positives = excess / mean volume of a lesion.

Three times the lesion leaves room for a border that is uncertain, and for nothing else.

Voxels that are neither lesion nor healthy (associated changes: oedema, mass effect, atrophy) are
neither hit nor miss: they count in no volume and no overlap, and a candidate that touches no
lesion and lies to half or more in them is no candidate.

Where a map is given, a candidate has its peak as score s, and a lesion that is found by recall
that of the best true candidate that touches it. Sweeping a threshold τ over the scores gives the
free-response ROC,

    sensitivity(τ) = |{lesions: s >= τ}| / |lesions|  against  |{false: s >= τ}| / volumes.

It ends where the mask ends: candidates are those of one mask, whose own threshold no test label
has chosen.

References:
    Baumgartner et al. (2021), nnDetection, arXiv:2106.00817 (IoU 0.1)
    Commowick et al. (2018), Objective evaluation of multiple sclerosis lesion segmentation,
    doi:10.1038/s41598-018-31911-7 (alpha 0.1, beta 0.7; its third threshold, which allows small
    candidates beside, is left out)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.metrics.components import labelled

__all__ = [
    "FROC_RATES",
    "IOU",
    "MULTIPLE",
    "OUTSIDE",
    "RECALL",
    "SIZES_ML",
    "Froc",
    "Lesions",
    "Stratum",
    "excess_ml",
    "false_positives",
    "found_by_iou",
    "found_by_recall",
    "froc",
    "froc_score",
    "lesion_f1",
    "lesions",
    "merged",
    "split",
    "stratified",
    "volume_matched_false_positives",
]

# Ends of the size bins, with the diameter of a ball of that volume: 0.1 ml is 5.8 mm, 1 ml is
# 12.4 mm, 10 ml is 26.7 mm. Decades, so that punctate, small, medium and large mean the same in
# every data set; quantiles of the data at hand would not.
SIZES_ML = (0.1, 1.0, 10.0)
# False positives per volume at which FROC is summarized (LUNA16, Setio et al. 2017).
FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
IOU = 0.1
RECALL = 0.1
OUTSIDE = 0.7
MULTIPLE = 3.0


@dataclass(frozen=True)
class Lesions:
    """Lesions and candidates of one volume.

    Arguments:
        volumes_ml: size of each lesion
        ious: IoU of each lesion with the candidate that is matched to it; 0 without one
        recalls: share of the voxels of each lesion that lie in the mask
        outside: share of the candidates that touch each lesion outside of all lesions; 1 without
        merged: lesions that share a candidate with another lesion
        split: lesions that several candidates touch
        candidates: components of the mask
        false_positives: candidates that touch no lesion or lie mostly elsewhere
        marked_ml: volume of the mask
        scores: of each lesion, -inf where it was not found by recall; empty without a map
        false_scores: of each false positive; empty without a map
    """

    volumes_ml: tuple[float, ...]
    ious: tuple[float, ...]
    recalls: tuple[float, ...]
    outside: tuple[float, ...]
    merged: int
    split: int
    candidates: int
    false_positives: int
    marked_ml: float
    scores: tuple[float, ...] = ()
    false_scores: Float[np.ndarray, "k"] = field(
        default_factory=lambda: np.zeros(0), compare=False, repr=False
    )

    @cached_property
    def by_iou(self) -> tuple[bool, ...]:
        """Whether each lesion is found by IoU."""
        return tuple(iou >= IOU for iou in self.ious)

    @cached_property
    def by_recall(self) -> tuple[bool, ...]:
        """Whether each lesion is found by recall, by candidates that are not mostly elsewhere."""
        pairs = zip(self.recalls, self.outside, strict=True)
        return tuple(recall >= RECALL and outside <= OUTSIDE for recall, outside in pairs)

    @property
    def excess_ml(self) -> float:
        """Marked volume beyond `MULTIPLE` times the lesions, in millilitres."""
        return max(0.0, self.marked_ml - MULTIPLE * sum(self.volumes_ml))


@dataclass(frozen=True)
class Stratum:
    """Lesions of one size range, `low <= volume < high`.

    Arguments:
        low_ml, high_ml: ends of the range
        lesions: how many there are
        by_iou, by_recall: how many of them were found, in the two ways
    """

    low_ml: float
    high_ml: float
    lesions: int
    by_iou: int
    by_recall: int


def lesions(
    mask: Bool[Tensor, "d h w"],
    truth: Bool[Tensor, "d h w"],
    *,
    spacing_mm: tuple[float, float, float],
    ignored: Bool[Tensor, "d h w"] | None = None,
    scores: Float[Tensor, "d h w"] | None = None,
) -> Lesions:
    """Matches the components of mask and truth.

    Arguments:
        mask: what the method marked
        truth: lesion voxels
        spacing_mm: voxel size along d, h, w
        ignored: voxels that are neither lesion nor healthy; where they are lesion, too, they are
            lesion
        scores: the map that the mask was made of
    """
    from scipy import ndimage  # heavy import

    m, y = mask.cpu().numpy(), truth.cpu().numpy()
    counted = np.ones_like(y) if ignored is None else y | ~ignored.cpu().numpy()
    labels, n = labelled(y)
    parts, k = labelled(m)
    size = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    whole = np.bincount(parts.ravel(), minlength=k + 1)[1:]
    inside = np.bincount(parts[y], minlength=k + 1)[1:]
    marked = np.bincount(parts[counted], minlength=k + 1)[1:]
    kept = (inside > 0) | (2 * marked > whole)
    false = kept & (marked - inside > OUTSIDE * marked)

    both = np.stack([labels[m & y], parts[m & y]])
    (of, by), hit = np.unique(both, axis=1, return_counts=True)
    of, by = of - 1, by - 1
    hits = np.bincount(of, weights=hit, minlength=n)
    touching = np.bincount(of, minlength=n)
    union = np.bincount(of, weights=marked[by], minlength=n)
    outside = 1 - np.bincount(of, weights=inside[by], minlength=n) / np.maximum(union, 1)
    shared = np.bincount(by, minlength=k)[by] > 1

    voxel_ml = spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
    result = Lesions(
        volumes_ml=tuple((size * voxel_ml).tolist()),
        ious=tuple(_matched(of, by, hit / (size[of] + marked[by] - hit), n).tolist()),
        recalls=tuple((hits / np.maximum(size, 1)).tolist()),
        outside=tuple(outside.tolist()),
        merged=len(np.unique(of[shared])),
        split=int((touching > 1).sum()),
        candidates=int(kept.sum()),
        false_positives=int(false.sum()),
        marked_ml=float(marked[kept].sum() * voxel_ml),
    )
    if scores is None:
        return result
    a = scores.detach().cpu().numpy()
    peaks = np.asarray(ndimage.maximum(a, parts, np.arange(1, k + 1)), dtype=float)
    best = np.full(n, -np.inf)
    right = ~false[by]
    np.maximum.at(best, of[right], peaks[by[right]])
    best[~np.asarray(result.by_recall, dtype=bool)] = -np.inf
    return replace(result, scores=tuple(best.tolist()), false_scores=peaks[false])


def _matched(of: np.ndarray, by: np.ndarray, iou: np.ndarray, n: int) -> Float[np.ndarray, "n"]:
    """IoU of each lesion with its own candidate: pairs one to one, the largest IoU first."""
    found, taken = np.zeros(n), set()
    for pair in np.argsort(-iou, kind="stable"):
        if found[of[pair]] == 0 and by[pair] not in taken:
            found[of[pair]] = iou[pair]
            taken.add(by[pair])
    return found


def found_by_iou(cases: Iterable[Lesions]) -> float:
    """Share of all lesions that are found by IoU; nan without lesions."""
    return _share(found for case in cases for found in case.by_iou)


def found_by_recall(cases: Iterable[Lesions]) -> float:
    """Share of all lesions that are found by recall; nan without lesions."""
    return _share(found for case in cases for found in case.by_recall)


def _share(found: Iterable[bool]) -> float:
    every = list(found)
    return sum(every) / len(every) if every else float("nan")


def _per_volume(counts: Sequence[float | int]) -> float:
    return sum(counts) / len(counts) if counts else float("nan")


def merged(cases: Sequence[Lesions]) -> float:
    """Lesions per volume that share a candidate with another one; nan without volumes."""
    return _per_volume([c.merged for c in cases])


def split(cases: Sequence[Lesions]) -> float:
    """Lesions per volume that several candidates touch; nan without volumes."""
    return _per_volume([c.split for c in cases])


def false_positives(cases: Sequence[Lesions]) -> float:
    """False positive components per volume; nan without volumes."""
    return _per_volume([c.false_positives for c in cases])


def excess_ml(cases: Sequence[Lesions]) -> float:
    """Marked volume beyond `MULTIPLE` times the lesions, per volume; nan without volumes."""
    return _per_volume([c.excess_ml for c in cases])


def volume_matched_false_positives(cases: Sequence[Lesions]) -> float:
    """The excess per volume in lesions of mean volume; nan without lesions."""
    sizes = [v for c in cases for v in c.volumes_ml]
    return excess_ml(cases) * len(sizes) / sum(sizes) if sizes else float("nan")


def lesion_f1(cases: Sequence[Lesions]) -> float:
    """2 TP / (2 TP + FP + FN), pooled over volumes; nan without lesions.

    TP are the lesions that are found by IoU, FN the others, FP the candidates beyond the TP, so
    that a candidate that covers several lesions, or a part of one, is worth one at most.
    """
    found = [f for case in cases for f in case.by_iou]
    if not found:
        return float("nan")
    return 2 * sum(found) / (len(found) + sum(c.candidates for c in cases))


def stratified(cases: Iterable[Lesions], *, edges_ml: Sequence[float] = SIZES_ML) -> list[Stratum]:
    """Detection per size range; sizes below the first and above the last edge have their own."""
    every = [t for c in cases for t in zip(c.volumes_ml, c.by_iou, c.by_recall, strict=True)]
    strata = []
    for low, high in pairwise([0.0, *edges_ml, float("inf")]):
        inside = [(iou, recall) for v, iou, recall in every if low <= v < high]
        counts = sum(iou for iou, _ in inside), sum(recall for _, recall in inside)
        strata.append(Stratum(low, high, len(inside), *counts))
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
