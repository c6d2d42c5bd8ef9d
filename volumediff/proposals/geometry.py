r"""Spacing and shape for a data set, such that no foreground is cropped.

With extents :math:`e_i` of the largest foreground along the three axes, the finest median spacing
:math:`s` of the files and a network for about :math:`N^3` voxels,

.. math:: s' = \max\left(s, \frac{\max_i e_i}{N - 2}\right), \qquad
          n_i = \left\lceil \frac{e_i / s' + 2}{r_i} \right\rceil r_i

where :math:`r_i` is the network's stride. Two voxels are for foregrounds that start between two
voxels of the new grid. Thick slices (a spacing three times the finest) are not divided.
"""

import math
from dataclasses import dataclass

import numpy as np

from volumediff.proposals.measured import MeasuredSet

__all__ = ["THICK", "TargetGrid", "target_grid", "thick_axis"]

MARGIN = 2  # voxels
THICK = 3.0  # ratio of spacings from which slices are thick, as in nnU-Net
FEWEST = 3  # planes that the coarsest level of a network needs, the size of its kernels


@dataclass(frozen=True)
class TargetGrid:
    """The grid of the prepared volumes.

    Arguments:
        spacing_mm: along R, A, S
        shape: in voxels
        centre: `foreground`, or a point in RAS millimetres
        extent_mm: what the shape must hold: twice the largest distance from the centre
        longest: voxels along the longest axis of what it must hold, not rounded up to the stride
    """

    spacing_mm: tuple[float, float, float]
    shape: tuple[int, int, int]
    centre: str | tuple[float, float, float]
    extent_mm: tuple[float, float, float]
    longest: float


def thick_axis(found: MeasuredSet) -> int | None:
    """The axis across thick slices; None where voxels are about as long as they are wide."""
    spacing = found.spacing_mm
    axis = int(np.argmax(spacing))
    return axis if spacing[axis] >= THICK * min(spacing) else None


def target_grid(
    found: MeasuredSet, size: int, stride: tuple[int, int, int], *, thick: int | None
) -> TargetGrid:
    """The grid for a network of about size³ voxels.

    Arguments:
        stride: of the network along the three axes
        thick: axis whose spacing stays as it is
    """
    centre: str | tuple[float, float, float] = "foreground"
    if found.aligned:
        corners = np.concatenate([c.corners_mm() for c in found.cases])
        x, y, z = np.round((corners.min(0) + corners.max(0)) / 2, 1).tolist()
        centre = (x, y, z)
    reached = [_reach(c.grid.affine, c.box, c.grid.spacing_mm, centre) for c in found.cases]
    extent = np.max(reached, axis=0)
    others = [i for i in range(3) if i != thick]
    finest = min(found.spacing_mm[i] for i in others)
    needed = max(float(extent[i]) for i in others) / (size - MARGIN)
    isotropic = _rounded_up(max(finest, needed))
    spacing = [found.spacing_mm[i] if i == thick else isotropic for i in range(3)]
    d, h, w = (
        max(math.ceil((e / s + MARGIN) / r), FEWEST) * r
        for e, s, r in zip(extent.tolist(), spacing, stride, strict=True)
    )
    a, b, c = (float(f"{s:.6g}") for s in spacing)
    x, y, z = extent.tolist()
    return TargetGrid((a, b, c), (d, h, w), centre, (x, y, z), max(x / a, y / b, z / c))


def _reach(
    affine: np.ndarray,
    box: tuple[tuple[int, int], ...],
    spacing_mm: tuple[float, float, float],
    centre: str | tuple[float, float, float],
) -> list[float]:
    """Millimetres along the axes of a volume that hold its foreground around the centre."""
    if isinstance(centre, str):
        return [(last - first + 1) * s for (first, last), s in zip(box, spacing_mm, strict=True)]
    point = np.linalg.solve(affine, np.array([*centre, 1.0]))[:3]
    return [
        2 * s * max(p - (first - 0.5), last + 0.5 - p)
        for (first, last), s, p in zip(box, spacing_mm, point.tolist(), strict=True)
    ]


def _rounded_up(value: float) -> float:
    """To two significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / unit - 1e-6) * unit:.6g}")
