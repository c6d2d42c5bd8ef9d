r"""Lesion-wise detection: connected components instead of voxels.

Lesions are the 26-connected components of the truth. A lesion is detected when more than a given
share of its voxels lies in the mask; a component of the mask that touches no lesion is a false
positive. Large lesions dominate every voxel-wise figure; here each lesion counts once, and
detection is reported per size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool
from torch import Tensor

__all__ = [
    "Lesions",
    "Stratum",
    "detection_rate",
    "false_positives",
    "lesion_f1",
    "lesions",
    "stratified",
]


@dataclass(frozen=True)
class Lesions:
    """Lesions of one volume.

    Arguments:
        volumes_mm3: size of each lesion
        detected: whether each lesion was found
        false_positives: components of the mask that touch no lesion
    """

    volumes_mm3: tuple[float, ...]
    detected: tuple[bool, ...]
    false_positives: int


@dataclass(frozen=True)
class Stratum:
    """Lesions of one size range: `low <= volume < high` in mm³; rate is nan without lesions."""

    low_mm3: float
    high_mm3: float
    lesions: int
    detected: int

    @property
    def rate(self) -> float:
        """Share of the lesions that were found."""
        return self.detected / self.lesions if self.lesions else float("nan")


def lesions(
    mask: Bool[Tensor, "d h w"],
    truth: Bool[Tensor, "d h w"],
    *,
    spacing_mm: tuple[float, float, float],
    share: float = 0.0,
) -> Lesions:
    """Matches the components of mask and truth.

    Arguments:
        mask: what the method marked
        truth: lesion voxels
        spacing_mm: voxel size along d, h, w
        share: a lesion is detected when more than this share of its voxels is marked, in [0, 1);
            0 accepts any overlap
    """
    from scipy.ndimage import label  # heavy import

    if not 0 <= share < 1:
        raise ValueError(f"share: expected a number in [0, 1), got {share}; 0 is any overlap.")
    m, y = mask.cpu().numpy(), truth.cpu().numpy()
    everywhere = np.ones((3, 3, 3))
    labels, n = label(y, structure=everywhere)
    size = np.bincount(labels.ravel(), minlength=n + 1)[1:]
    hits = np.bincount(labels[m], minlength=n + 1)[1:]
    components, k = label(m, structure=everywhere)
    touching = np.unique(components[y & m])
    voxel = spacing_mm[0] * spacing_mm[1] * spacing_mm[2]
    return Lesions(
        volumes_mm3=tuple(float(s * voxel) for s in size),
        detected=tuple(bool(hit > share * s) for hit, s in zip(hits, size, strict=True)),
        false_positives=int(k - len(touching)),
    )


def detection_rate(cases: Iterable[Lesions]) -> float:
    """Share of all lesions that were found; nan without lesions."""
    found = [d for case in cases for d in case.detected]
    return sum(found) / len(found) if found else float("nan")


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


def stratified(cases: Iterable[Lesions], *, edges_mm3: Sequence[float]) -> list[Stratum]:
    """Detection per size range; sizes below the first and above the last edge have their own."""
    pairs = [(v, d) for c in cases for v, d in zip(c.volumes_mm3, c.detected, strict=True)]
    strata = []
    for low, high in pairwise([0.0, *edges_mm3, float("inf")]):
        found = [d for v, d in pairs if low <= v < high]
        strata.append(Stratum(low, high, len(found), sum(found)))
    return strata
