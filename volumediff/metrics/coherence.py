r"""Do samples look like masks that a reader draws? Their parts and their surface.

For a mask A on voxels with faces of area f_a across axis a,

    components = number of 26-connected parts,   surface = Σ_a f_a |{faces between in and out}|,

and the coherence of samples is the mean over them divided by the mean over the readers' masks: 1
is as coherent as a reader, many specks have ratios far above it. The surface is that of the
voxels' faces: larger than that of a smooth body (a ball's by half), for both alike.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool

from volumediff.metrics.components import labelled

__all__ = ["Shape", "shape_of"]


@dataclass(frozen=True)
class Shape:
    """Of one mask, or sums over several.

    Arguments:
        components: number of connected parts
        surface_mm2: area of the faces between the mask and the rest, in mm²
        masks: how many masks this is the sum of
    """

    components: int = 0
    surface_mm2: float = 0.0
    masks: int = 0

    def __add__(self, other: "Shape") -> "Shape":
        return Shape(
            self.components + other.components,
            self.surface_mm2 + other.surface_mm2,
            self.masks + other.masks,
        )

    def relative(self, to: "Shape") -> tuple[float, float]:
        """Components and surface per mask as multiples of another's; nan where that has none."""
        if not self.masks or not to.masks:
            return float("nan"), float("nan")
        pairs = ((self.components, to.components), (self.surface_mm2, to.surface_mm2))
        ratios = [(a / self.masks) / (b / to.masks) if b else float("nan") for a, b in pairs]
        return ratios[0], ratios[1]


def shape_of(mask: Bool[np.ndarray, "d h w"], *, spacing_mm: tuple[float, float, float]) -> Shape:
    """Parts and surface of a mask; beyond the volume is outside.

    Arguments:
        mask: any
        spacing_mm: voxel size along d, h, w
    """
    _, parts = labelled(mask)
    area = 0.0
    for axis, side in enumerate(spacing_mm):
        edges = np.diff(mask.astype(np.int8), axis=axis, prepend=0, append=0)
        area += np.count_nonzero(edges) * math.prod(spacing_mm) / side
    return Shape(parts, float(area), 1)
