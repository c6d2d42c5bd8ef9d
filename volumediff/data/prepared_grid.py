r"""The grid of a prepared volume: where it lies in the file's, and the weights that lead there.

Voxel i of the prepared volume lies at :math:`i\,\text{step} + \text{origin}` in voxels of the
file, along each axis.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool

from volumediff.data.resampling import Matrices, axis_weights
from volumediff.data.volume import Volume

__all__ = ["Centre", "Placement", "placement", "weights"]

Centre = Literal["foreground", "volume"] | tuple[float, float, float]
"""The box around the foreground, the file's field of view, or a point in RAS millimetres."""

Placement = tuple[tuple[int, int, int], tuple[float, float, float], tuple[float, float, float]]
"""Shape, step and origin."""


def placement(
    first: Volume,
    inside: Bool[np.ndarray, "d h w"],
    *,
    spacing_mm: tuple[float, float, float] | None,
    size: tuple[int, int, int] | None,
    centre: Centre,
) -> Placement:
    """Shape, step and origin of the prepared grid of a volume.

    The resampled grid has the centre of the file's field of view; the crop starts at a whole
    voxel of it, so that equal spacings mean an exact copy. Around a point, the point is the
    centre exactly.

    Arguments:
        first: the volume
        inside: its foreground
        spacing_mm: of the prepared grid; None keeps the volume's
        size: its shape; None keeps what the spacing gives
        centre: what it is centred on
    """
    shape, step, origin = [], [], []
    point = None
    if not isinstance(centre, str):
        point = np.linalg.solve(first.grid.affine, np.array([*centre, 1.0]))[:3]
    for axis, n in enumerate(first.grid.shape):
        wanted = spacing_mm[axis] if spacing_mm else first.spacing_mm[axis]
        ratio = wanted / first.spacing_mm[axis]
        if abs(ratio - 1) * n < 1e-2:  # the whole axis differs by less than 0.01 voxel
            ratio = 1.0
        resampled = max(1, round(n / ratio))
        corner = (n - 1) / 2 - (resampled - 1) / 2 * ratio
        voxels = size[axis] if size else resampled
        if point is not None:
            shape.append(voxels)
            step.append(ratio)
            origin.append(float(point[axis]) - (voxels - 1) / 2 * ratio)
            continue
        middle = (n - 1) / 2
        if centre == "foreground" and inside.any():
            other = tuple(a for a in range(3) if a != axis)
            found = np.flatnonzero(inside.any(axis=other))
            middle = (float(found[0]) + float(found[-1])) / 2
        start = round((middle - corner) / ratio - (voxels - 1) / 2)
        # never crop on one side what could be kept by padding less on the other
        spare = resampled - voxels
        start = min(max(start, min(0, spare)), max(0, spare))
        shape.append(voxels)
        step.append(ratio)
        origin.append(corner + start * ratio)
    return tuple(shape), tuple(step), tuple(origin)


def weights(
    shape: tuple[int, int, int],
    out: tuple[int, int, int],
    *,
    step: tuple[float, ...],
    origin: tuple[float, ...],
    width: float | None = None,
) -> Matrices:
    """Weights along d, h, w that take a volume of a shape to another; see `axis_weights`."""
    d, h, w = (
        axis_weights(shape[a], out[a], step=step[a], origin=origin[a], width=width)
        for a in range(3)
    )
    return d, h, w
