r"""Dice of each piece of a label: what a small one loses does not drown in what a large one keeps.

.. math:: \mathrm{Dice}_i = \frac{2\, |L_i \cap A|}{|L_i| + |A \cap R_i|}, \qquad
          R_i = \{v : \text{piece } i \text{ of the truth is the nearest}\},

with A what was found: a voxel that is wrong counts against the piece that it is nearest to. Sizes
are numbers of voxels.

References:
    Jaus et al. (2024), Every Component Counts: Rethinking the Measure of Success for Medical
    Semantic Segmentation in Multi-Instance Segmentation Tasks, arXiv:2410.18684
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from torch import Tensor

from volumediff.metrics.components import labelled

__all__ = ["LesionDice", "lesion_dice"]


@dataclass(frozen=True)
class LesionDice:
    """One piece of the truth.

    Arguments:
        voxels: its size
        dice: in [0, 1]
    """

    voxels: int
    dice: float


def lesion_dice(
    found: Bool[Tensor, "d h w"],
    truth: Bool[Tensor, "d h w"],
    *,
    spacing_mm: tuple[float, float, float],
) -> list[LesionDice]:
    """The Dice of each piece of the truth, in the order of memory; empty without truth."""
    from scipy.ndimage import distance_transform_edt  # heavy import

    a, y = found.cpu().numpy(), truth.cpu().numpy()
    pieces, count = labelled(y)
    if count == 0:
        return []
    nearest = distance_transform_edt(
        ~y, sampling=spacing_mm, return_distances=False, return_indices=True
    )
    region = pieces[tuple(nearest)]
    sizes = np.bincount(pieces.ravel(), minlength=count + 1)[1:]
    marked = np.bincount(region[a], minlength=count + 1)[1:]
    hit = np.bincount(pieces[a & y], minlength=count + 1)[1:]
    return [
        LesionDice(int(size), float(2 * h / (size + m)))
        for size, m, h in zip(sizes, marked, hit, strict=True)
    ]
