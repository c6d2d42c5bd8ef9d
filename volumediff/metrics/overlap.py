r"""Overlap of a mask with the truth: Dice = 2 |A ∩ B| / (|A| + |B|), and what it cannot say.

A volume without lesion has no Dice: it is nan, to be left out of means, and its false positives
are counted as a volume instead.
"""

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

__all__ = ["Overlap", "overlap"]


@dataclass(frozen=True)
class Overlap:
    """Overlap of one volume.

    Arguments:
        dice: Dice coefficient; nan where the truth is empty
        precision: share of the mask inside the truth; nan where the mask is empty
        recall: share of the truth inside the mask; nan where the truth is empty
        false_positive_ml: volume of the mask outside the truth, in millilitres
    """

    dice: float
    precision: float
    recall: float
    false_positive_ml: float


def overlap(
    mask: Bool[Tensor, "*shape"],
    truth: Bool[Tensor, "*shape"],
    *,
    foreground: Bool[Tensor, "*shape"] | None = None,
    spacing_mm: tuple[float, float, float],
) -> Overlap:
    """Compares a mask with the truth, inside the foreground where one is given."""
    if foreground is not None:
        mask, truth = mask & foreground, truth & foreground
    hit, found, wanted = int((mask & truth).sum()), int(mask.sum()), int(truth.sum())
    ml = spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
    return Overlap(
        dice=_ratio(2 * hit, found + wanted) if wanted else float("nan"),
        precision=_ratio(hit, found),
        recall=_ratio(hit, wanted),
        false_positive_ml=(found - hit) * ml,
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
