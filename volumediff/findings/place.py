r"""Where a finding lies in the foreground: side, thirds and words, in world coordinates.

A voxel lies at :math:`A (i, j, k, 1)^T`, in millimetres to the right, anterior and superior, so
that flips of the file change nothing. No atlas is needed: the frame is the extent of the
foreground along the three world axes. On a head without tilt the middle of its left-right extent
is the mid-sagittal plane; on other organs left and right are those of the organ.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

__all__ = ["MIDLINE_MM", "Frame", "frame_of", "laterality", "region_words", "third", "world"]

# The falx and the third ventricle are within a few millimetres of the plane, and heads lie tilted
# by about as much.
MIDLINE_MM = 5.0
# A tenth of the voxels must be on the other side: a rim over the plane is not bilateral.
OTHER_SIDE = 0.1

Laterality = Literal["left", "right", "midline", "bilateral"]
Point = Float[np.ndarray, "3"]


@dataclass(frozen=True, eq=False)
class Frame:
    """Extent of the foreground's voxel centres along x, y, z.

    Arguments:
        low_mm, high_mm: its ends
    """

    low_mm: Point
    high_mm: Point

    @property
    def middle_mm(self) -> float:
        """x of the plane between left and right."""
        return float(self.low_mm[0] + self.high_mm[0]) / 2


def world(
    index: Int[np.ndarray, "n 3"] | Float[np.ndarray, "n 3"], affine: Float[np.ndarray, "4 4"]
) -> Float[np.ndarray, "n 3"]:
    """RAS millimetres of voxel indices."""
    return index @ affine[:3, :3].T + affine[:3, 3]


def frame_of(
    foreground: Bool[np.ndarray, "d h w"], affine: Float[np.ndarray, "4 4"]
) -> Frame | None:
    """The frame of a foreground; None of an empty one."""
    _, h, w = foreground.shape
    plane = np.stack(np.meshgrid(np.arange(h), np.arange(w), indexing="ij"), axis=-1)
    beside = plane @ affine[:3, 1:3].T + affine[:3, 3]  # (h, w, 3)
    low, high = np.full(3, np.inf), np.full(3, -np.inf)
    for i, inside in enumerate(foreground):  # plane by plane: positions need much memory
        if inside.any():
            points = beside[inside] + affine[:3, 0] * i
            low, high = np.minimum(low, points.min(0)), np.maximum(high, points.max(0))
    return Frame(low, high) if np.isfinite(low).all() else None


def laterality(x_mm: Float[np.ndarray, "n"], middle_mm: float) -> Laterality:
    """The side of voxels by their x, with smaller x to the left."""
    off = x_mm - middle_mm
    left, right = float((off < 0).mean()), float((off > 0).mean())
    across = off.min() < -MIDLINE_MM and off.max() > MIDLINE_MM
    if across and min(left, right) >= OTHER_SIDE:
        return "bilateral"
    if abs(off.mean()) <= MIDLINE_MM:
        return "midline"
    return "left" if off.mean() < 0 else "right"


def third(value: float, low: float, high: float) -> int:
    """0, 1 or 2: which third of an extent holds a value; ends beyond it belong to the last one."""
    share = (value - low) / (high - low) if high > low else 0.5
    return min(max(int(3 * share), 0), 2)


def region_words(side: str, front_back: str, up_down: str) -> str:
    """Side and thirds in words, such as `right, anterior, superior third of the foreground`."""
    along = {"middle": "middle third front to back"}.get(front_back, f"{front_back} third")
    upright = {"middle": "middle third in height"}.get(up_down, f"{up_down} third")
    return f"{side}, {along}, {upright} of the foreground"
