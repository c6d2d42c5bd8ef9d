r"""Boxes: axis-aligned boxes of components, for truth that is boxes and for coarse localization.

A box is (d0, h0, w0, d1, h1, w1) in voxels, the ends exclusive, so that its size is the product of
the differences. With A, B two boxes and C the smallest box around both,

    IoU = |A ∩ B| / |A ∪ B|,   GIoU = IoU - (|C| - |A ∪ B|) / |C|.

Found boxes are matched greedily: by falling score, each to the free true box of the same volume
with the largest IoU, if that reaches the threshold, and of a volume only the 100 best scores count
(as in COCO). AP is the sum of precision times
gain in recall over all volumes, not interpolated, like the voxel-wise one.

Voxel sizes cancel in every ratio, so that spacing does not matter.

References:
    Rezatofighi et al. (2019), Generalized Intersection over Union, arXiv:1902.09630
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from volumediff.metrics.components import labelled

__all__ = [
    "IOUS",
    "Boxes",
    "Matches",
    "Response",
    "average_precision",
    "boxes",
    "giou",
    "inside",
    "iou",
    "match",
    "precision",
    "recall",
    "response",
]

# Most found boxes of a volume that count (COCO): a noisy mask has thousands of specks.
LIMIT = 100
# Lesions are small and their borders vague: 0.5 of a 3D box is strict, 0.1 says "it is there".
IOUS = (0.1, 0.25, 0.5)


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one volume.

    Arguments:
        corners: (d0, h0, w0, d1, h1, w1), ends exclusive
        scores: of each box; the peak of the map in its component, or 1 without a map
    """

    corners: Int[np.ndarray, "n 6"]
    scores: Float[np.ndarray, "n"]


def boxes(mask: Bool[Tensor, "d h w"], *, scores: Float[Tensor, "d h w"] | None = None) -> Boxes:
    """Boxes around the 26-connected components of a mask: pseudo-boxes where it is a map's.

    Arguments:
        mask: lesion voxels, or what a method marked
        scores: the map that the mask was made of
    """
    from scipy import ndimage  # heavy import

    labels, n = labelled(mask.cpu().numpy())
    slices = ndimage.find_objects(labels)
    corners = [[*(s.start for s in box), *(s.stop for s in box)] for box in slices]
    peaks = np.ones(n)
    if scores is not None:
        a = scores.detach().cpu().numpy()
        peaks = np.asarray(ndimage.maximum(a, labels, np.arange(1, n + 1)), dtype=float)
    return Boxes(np.array(corners, dtype=np.int64).reshape(-1, 6), peaks.reshape(n))


def _size(corners: np.ndarray) -> np.ndarray:
    return np.prod(np.clip(corners[..., 3:] - corners[..., :3], 0, None), axis=-1)


def _joined(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes of the intersection, the union and the box around both, of all pairs."""
    p, q = a[:, None], b[None]
    low, high = np.maximum(p[..., :3], q[..., :3]), np.minimum(p[..., 3:], q[..., 3:])
    common = _size(np.concatenate([low, high], axis=-1))
    low, high = np.minimum(p[..., :3], q[..., :3]), np.maximum(p[..., 3:], q[..., 3:])
    around = _size(np.concatenate([low, high], axis=-1))
    return common, _size(p) + _size(q) - common, around


def iou(a: Int[np.ndarray, "n 6"], b: Int[np.ndarray, "m 6"]) -> Float[np.ndarray, "n m"]:
    """Intersection over union of all pairs.

    In whole numbers, as 0.5 must be 0.5 where it is compared with a threshold; MONAI's is in
    single precision.
    """
    common, union, _ = _joined(a, b)
    return common / np.maximum(union, 1)


def giou(a: Int[np.ndarray, "n 6"], b: Int[np.ndarray, "m 6"]) -> Float[np.ndarray, "n m"]:
    """Generalized IoU of all pairs, in (-1, 1]: tells near misses from far ones."""
    common, union, around = _joined(a, b)
    return common / np.maximum(union, 1) - (around - union) / np.maximum(around, 1)


@dataclass(frozen=True, eq=False)
class Matches:
    """Found boxes of one volume against its true ones.

    Arguments:
        scores: of the found boxes, falling
        hits: per IoU threshold, whether each found box has a true one
        truths: number of true boxes
        nearest: for each true box, the largest GIoU of a found one; -1 where nothing was found
    """

    scores: Float[np.ndarray, "n"]
    hits: Bool[np.ndarray, "k n"]
    truths: int
    nearest: Float[np.ndarray, "m"]


def match(found: Boxes, truth: Boxes, *, ious: Sequence[float] = IOUS) -> Matches:
    """Greedy matching at each IoU threshold, of the `LIMIT` found boxes that score highest."""
    order = np.argsort(-found.scores, kind="stable")[:LIMIT]
    found = Boxes(found.corners[order], found.scores[order])
    overlap = iou(found.corners, truth.corners)
    hits = np.zeros((len(ious), len(order)), dtype=bool)
    for row, least in zip(hits, ious, strict=True):
        free = np.ones(len(truth.corners), dtype=bool)
        for i in range(len(order)) if free.size else ():
            best = int(np.argmax(np.where(free, overlap[i], -1.0)))
            if free[best] and overlap[i, best] >= least:
                row[i], free[best] = True, False
    nearest = np.full(len(truth.corners), -1.0)
    if len(order):
        nearest = giou(found.corners, truth.corners).max(axis=0, initial=-1.0)
    return Matches(found.scores, hits, len(truth.corners), nearest)


def average_precision(cases: Sequence[Matches], *, at: int) -> float:
    """AP over all volumes at IoU threshold number `at`; nan without true boxes.

    Boxes of equal score enter together, so that their order means nothing.
    """
    truths = sum(c.truths for c in cases)
    if truths == 0:
        return float("nan")
    scores = np.concatenate([c.scores for c in cases])
    hits = np.concatenate([c.hits[at] for c in cases])
    order = np.argsort(-scores, kind="stable")
    scores, tp = scores[order], np.cumsum(hits[order])
    last = np.flatnonzero(np.diff(scores, append=np.nan) != 0)  # of each run of equal scores
    gained = np.diff(tp[last], prepend=0) / truths
    return float(np.sum(gained * tp[last] / (last + 1)))


def recall(cases: Sequence[Matches], *, at: int) -> float:
    """Share of the true boxes that were found; nan without true boxes."""
    truths = sum(c.truths for c in cases)
    return sum(int(c.hits[at].sum()) for c in cases) / truths if truths else float("nan")


def precision(cases: Sequence[Matches], *, at: int) -> float:
    """Share of the found boxes that have a true one; nan if nothing was found."""
    found = sum(len(c.scores) for c in cases)
    return sum(int(c.hits[at].sum()) for c in cases) / found if found else float("nan")


def inside(found: Boxes, shape: tuple[int, int, int]) -> Bool[Tensor, "d h w"]:
    """Voxels that lie in any of the boxes."""
    mask = torch.zeros(shape, dtype=torch.bool)
    for d0, h0, w0, d1, h1, w1 in found.corners.tolist():
        mask[d0:d1, h0:h1, w0:w1] = True
    return mask


@dataclass(frozen=True)
class Response:
    """A map inside and outside of boxes, above its lowest value in the foreground.

    Arguments:
        inside: mean inside
        outside: mean in the rest of the foreground
        energy: share of the sum of the map that lies inside
    """

    inside: float
    outside: float
    energy: float

    @property
    def ratio(self) -> float:
        """Inside over outside: 1 for a map that knows nothing, whatever the size of the boxes."""
        return self.inside / self.outside if self.outside > 0 else float("nan")


def response(
    scores: Float[Tensor, "d h w"],
    box: Bool[Tensor, "d h w"],
    *,
    foreground: Bool[Tensor, "d h w"] | None = None,
) -> Response:
    """Mean response in boxes and around them; nan where there is no such voxel.

    Normalized maps are negative where a volume is more usual than most, and a ratio needs a zero:
    it is the lowest value in the foreground.
    """
    everywhere = torch.ones_like(box) if foreground is None else foreground
    a = scores.double()
    a = a - a[everywhere].min() if bool(everywhere.any()) else a
    hit, rest = a[box & everywhere], a[everywhere & ~box]
    whole = float(hit.sum() + rest.sum())
    return Response(
        inside=float(hit.mean()) if hit.numel() else float("nan"),
        outside=float(rest.mean()) if rest.numel() else float("nan"),
        energy=float(hit.sum()) / whole if whole > 0 else float("nan"),
    )
