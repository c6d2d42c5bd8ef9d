r"""Samples of a segmentation against the masks of several readers.

Let S_1..S_n be samples and Y_1..Y_m readers' label maps, and d(A, B) = 1 - IoU(A, B), the IoU
averaged over the labels; two empty masks of a label agree, IoU = 1. The generalized energy
distance compares the two distributions,

    GED² = 2 E d(S, Y) - E d(S, S') - E d(Y, Y'),

and has two estimators that differ by .08 to .16 on four readers:

    V: means over all pairs, a mask with itself among them: biased upwards, >= 0 for a distance
       of negative type; the one that most published tables use;
    U: means over different masks: unbiased, may be negative.

A method that gives one mask gives it again when asked again: its E d(S, S') is 0 in both.

**GED alone can be gamed**: samples whose voxels are drawn independently from the readers' mean
reach the fifth of a majority mask's. The Hungarian-matched IoU does not reward them: samples and
readers are repeated to their least common multiple, matched one to one for the largest sum of
IoU, and the mean IoU of the pairs is given. The shape of samples is what `coherence` compares.

Collective insight (CIMD) is the harmonic mean of three parts, for each label:

    S_c    sensitivity of the union of the samples for the union of the readers,
    D_max  mean over readers of the largest Dice with a sample,
    D_a    1 - (|max δ_S - max δ_Y| + |min δ_S - min δ_Y|) / 2, agreement of the diversity.

δ are the disagreements 1 - Dice of pairs of different samples (S) and of readers (Y): the paper
speaks of their variance without saying which, so that figures of D_a compare within this package.

References:
    Kohl et al. (2018), A Probabilistic U-Net, arXiv:1806.05034 (GED)
    Kohl et al. (2019), A Hierarchical Probabilistic U-Net, arXiv:1905.13077 (HM-IoU)
    Rahman et al. (2023), Ambiguous Medical Image Segmentation using Diffusion Models,
        arXiv:2304.04745 (collective insight)
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

__all__ = ["READERS", "Overlaps", "overlaps", "reader_agreement"]

READERS = ("ged_v", "ged_u", "hm_iou", "sensitivity", "d_max", "diversity", "ci")
CHUNK = 1 << 22  # voxels that are compared at once: one byte each, times the number of masks

Matrix = Float[np.ndarray, "n m"]
Square = Float[np.ndarray, "k k"]


@dataclass(frozen=True, eq=False)
class Overlaps:
    """How one label agrees between samples and readers.

    Arguments:
        cross: IoU of each sample with each reader
        samples: IoU between samples
        readers: IoU between readers
        union: sensitivity of the samples' union for the readers'; 1 where that is empty
    """

    cross: Matrix
    samples: Float[np.ndarray, "n n"]
    readers: Float[np.ndarray, "m m"]
    union: float


def overlaps(
    samples: UInt8[np.ndarray, "n d h w"], readers: UInt8[np.ndarray, "m d h w"], *, label: int
) -> Overlaps:
    """IoU between all label maps for one label; 1 where both have none of it.

    Arguments:
        samples: label maps of a method, at least one
        readers: label maps of readers, at least one
        label: value that is compared
    """
    n = len(samples)
    flat = np.concatenate([samples.reshape(n, -1), readers.reshape(len(readers), -1)])
    both = np.zeros((len(flat), len(flat)))
    hit = wanted = 0
    for start in range(0, flat.shape[1], CHUNK):
        masks = flat[:, start : start + CHUNK] == label
        masks = masks[:, masks.any(axis=0)].astype(np.float32)  # few voxels have the label
        both += masks @ masks.T  # counts below 2^24 are exact in float32
        mine, theirs = masks[:n].any(axis=0), masks[n:].any(axis=0)
        hit, wanted = hit + int((mine & theirs).sum()), wanted + int(theirs.sum())
    size = np.diag(both)
    union = size[:, None] + size - both
    iou = np.divide(both, union, out=np.ones_like(both), where=union > 0)
    return Overlaps(iou[:n, n:], iou[:n, :n], iou[n:, n:], hit / wanted if wanted else 1.0)


def reader_agreement(parts: Sequence[Overlaps]) -> dict[str, float]:
    """The figures of `READERS`, of one label, or of several with their IoU averaged.

    Arguments:
        parts: of each label
    """
    cross, samples, readers = (
        np.mean([getattr(p, name) for p in parts], axis=0)
        for name in ("cross", "samples", "readers")
    )
    insight = np.mean([_insight(p) for p in parts], axis=0)
    v = 2 * (1 - cross).mean() - (1 - samples).mean() - (1 - readers).mean()
    u = 2 * (1 - cross).mean() - _between(1 - samples) - _between(1 - readers)
    figures = (v, u, _matched(cross), *insight)
    return dict(zip(READERS, map(float, figures), strict=True))


def _between(distances: Square) -> float:
    """Mean over pairs of different masks; 0 for a single one."""
    n = len(distances)
    return float((distances.sum() - np.trace(distances)) / (n * (n - 1))) if n > 1 else 0.0


def _matched(iou: Matrix) -> float:
    from scipy.optimize import linear_sum_assignment  # heavy import

    n, m = iou.shape
    common = math.lcm(n, m)
    whole = np.repeat(np.repeat(iou, common // n, axis=0), common // m, axis=1)
    return float(whole[linear_sum_assignment(whole, maximize=True)].mean())


def _insight(part: Overlaps) -> tuple[float, float, float, float]:
    """S_c, D_max, D_a and their harmonic mean."""
    dice = 2 * part.cross / (1 + part.cross)
    best = float(dice.max(axis=0).mean())
    (low_s, high_s), (low_y, high_y) = (_spread(m) for m in (part.samples, part.readers))
    diversity = 1 - (abs(high_s - high_y) + abs(low_s - low_y)) / 2
    three = (part.union, best, diversity)
    whole = 3 / sum(1 / x for x in three) if all(x > 0 for x in three) else 0.0
    return (*three, whole)


def _spread(iou: Square) -> tuple[float, float]:
    """Smallest and largest 1 - Dice of pairs of different masks; 0 for a single one."""
    if len(iou) < 2:
        return 0.0, 0.0
    pairs = iou[~np.eye(len(iou), dtype=bool)]
    distances = 1 - 2 * pairs / (1 + pairs)
    return float(distances.min()), float(distances.max())
