r"""Panoptic quality of lesions: are they found as objects, and how well is each outlined?

Objects are the 26-connected components of the truth, L_i, and of the mask, C_j. Pairs are matched
one to one, the largest IoU first; with TP the matched pairs whose IoU exceeds a threshold t, FN
the other lesions and FP the other candidates,

    RQ = TP / (TP + FP/2 + FN/2),   SQ = mean IoU of the TP,   PQ = RQ · SQ.

At t = 1/2 a match is unique whatever the order. RQ is the F1 of detection; `lesion_f1` is RQ at
t = 0.1, at which lesions are compared in 3D (see `lesions`, which gives the same figure). Counts
are pooled over volumes. By size: a lesion and its match belong to the size of the lesion, an
unmatched candidate to its own.

References:
    Kirillov et al. (2019), Panoptic Segmentation, arXiv:1801.00868
    Kofler et al. (2023), Panoptica, arXiv:2312.02608
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool

from volumediff.metrics.components import labelled
from volumediff.metrics.lesions import IOU, SIZES_ML

__all__ = [
    "MATCH",
    "Instances",
    "Panoptic",
    "instances",
    "lesion_counts",
    "panoptic",
    "panoptic_by_size",
]

MATCH = 0.5
"""A pair whose IoU is above this is a match in PQ."""


@dataclass(frozen=True)
class Instances:
    """Objects of one volume and how they are matched.

    Arguments:
        lesions: (volume in ml, IoU with the matched candidate, 0 without one) of each lesion
        candidates: (volume in ml, IoU with the matched lesion, 0 without one) of each candidate
    """

    lesions: tuple[tuple[float, float], ...]
    candidates: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panoptic:
    """Counts of matches, which add up over volumes.

    Arguments:
        tp, fp, fn: matched pairs, other candidates, other lesions
        iou: sum of the IoU of the matched pairs
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0
    iou: float = 0.0

    def __add__(self, other: "Panoptic") -> "Panoptic":
        return Panoptic(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou + other.iou
        )

    @property
    def rq(self) -> float:
        """Recognition quality, the F1 of detection; nan without any object."""
        weight = self.tp + (self.fp + self.fn) / 2
        return self.tp / weight if weight else float("nan")

    @property
    def sq(self) -> float:
        """Segmentation quality, mean IoU of the matches; nan without a match."""
        return self.iou / self.tp if self.tp else float("nan")

    @property
    def pq(self) -> float:
        """RQ · SQ; 0 where nothing matches, nan without any object."""
        weight = self.tp + (self.fp + self.fn) / 2
        return self.iou / weight if weight else float("nan")


def instances(
    mask: Bool[np.ndarray, "d h w"],
    truth: Bool[np.ndarray, "d h w"],
    *,
    spacing_mm: tuple[float, float, float],
) -> Instances:
    """Matches the components of mask and truth.

    Arguments:
        mask: voxels of a label in the prediction
        truth: voxels of it in the truth
        spacing_mm: voxel size along d, h, w
    """
    from scipy import ndimage  # heavy import

    ml = math.prod(spacing_mm) / 1000
    if not mask.any() and not truth.any():
        return Instances((), ())
    (box,) = ndimage.find_objects((mask | truth).astype(np.uint8))
    mask, truth = mask[box], truth[box]
    labels, n = labelled(truth)
    parts, k = labelled(mask)
    size = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    whole = np.bincount(parts.ravel(), minlength=k + 1)[1:]
    both = mask & truth
    (of, by), hit = np.unique(np.stack([labels[both], parts[both]]), axis=1, return_counts=True)
    of, by = of - 1, by - 1
    iou = hit / (size[of] + whole[by] - hit)
    found, own = np.zeros(n), np.zeros(k)
    for pair in np.argsort(-iou, kind="stable"):
        if found[of[pair]] == 0 and own[by[pair]] == 0:
            found[of[pair]] = own[by[pair]] = iou[pair]
    return Instances(
        tuple(zip((size * ml).tolist(), found.tolist(), strict=True)),
        tuple(zip((whole * ml).tolist(), own.tolist(), strict=True)),
    )


def panoptic(
    volume: Instances, *, above: float = MATCH, low_ml: float = 0.0, high_ml: float = math.inf
) -> Panoptic:
    """Counts of one volume.

    Arguments:
        volume: its objects
        above: the IoU of a match exceeds it
        low_ml, high_ml: sizes that count, `low <= volume < high`
    """
    lesions = [iou for ml, iou in volume.lesions if low_ml <= ml < high_ml]
    matched = [iou for iou in lesions if iou > above]
    false = [iou for ml, iou in volume.candidates if iou <= above and low_ml <= ml < high_ml]
    return Panoptic(len(matched), len(false), len(lesions) - len(matched), sum(matched, 0.0))


def lesion_counts(volume: Instances) -> Panoptic:
    """Counts at the IoU of lesion-wise detection: its `rq` is the lesion F1."""
    return panoptic(volume, above=math.nextafter(IOU, 0))


def panoptic_by_size(
    volumes: Sequence[Instances], *, edges_ml: Sequence[float] = SIZES_ML
) -> dict[tuple[float, float], Panoptic]:
    """Pooled counts for each size range, in ml, that has objects."""
    found = {}
    for low, high in pairwise([0.0, *edges_ml, math.inf]):
        counts = [panoptic(v, low_ml=low, high_ml=high) for v in volumes]
        whole = sum(counts, Panoptic())
        if whole.tp + whole.fp + whole.fn:
            found[low, high] = whole
    return found
