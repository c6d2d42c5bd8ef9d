r"""Contours that somebody drew on slices, filled to label maps.

A contour runs through pixels. A pixel is inside where a ray from it crosses the closed polygon an
odd number of times; the pixels that the contour runs through are outside, as LIDC-IDRI draws them:
through the first pixels that are not of the nodule. A contour without inside is its own pixels. A
contour that excludes takes its inside away again.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Bool

from volumediff.data.cases import Contour
from volumediff.data.grid import canonical
from volumediff.data.volume import Volume
from volumediff.errors import DataError

__all__ = ["filled_contours", "inside"]


def inside(contour: Contour) -> tuple[tuple[int, int], Bool[np.ndarray, "w h"]]:
    """The pixels of a contour, as a mask whose first pixel is the corner that comes with it."""
    points = np.array(contour.points)
    corner = points.min(0)
    size = points.max(0) - corner + 1
    x, y = np.meshgrid(*(np.arange(n) for n in size), indexing="ij")
    odd, drawn = np.zeros(size, bool), np.zeros(size, bool)
    ring = points - corner
    for (x0, y0), (x1, y1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        share = np.arange(steps + 1) / steps
        along = (np.rint(a + share * (b - a)).astype(int) for a, b in ((x0, x1), (y0, y1)))
        drawn[tuple(along)] = True
        if y0 != y1:
            crossed = (y0 > y) != (y1 > y)
            odd ^= crossed & (x < x0 + (y - y0) / (y1 - y0) * (x1 - x0))
    filled = odd & ~drawn
    if not filled.any() and not contour.excludes:
        filled = drawn
    return (int(corner[0]), int(corner[1])), filled


def filled_contours(contours: Sequence[Contour], like: Volume) -> Volume:
    """A label on the grid of a volume: 1 inside the contours.

    Raises:
        DataError: a contour leaves the volume
    """
    shape = like.native.shape
    array = np.zeros(shape, np.uint8)
    for contour in sorted(contours, key=lambda c: c.excludes):  # holes last
        xs, ys = zip(*contour.points, strict=True)
        x, y = min(xs), min(ys)
        w, h = max(xs) + 1 - x, max(ys) + 1 - y
        low, high = (x, y, contour.slice), (x + w, y + h, contour.slice + 1)
        if min(low) < 0 or any(b > n for b, n in zip(high, shape, strict=True)):
            raise DataError(
                f"{like.path}: a contour at {low} of {w} x {h} pixels does not "
                f"lie in a volume of {shape} voxels; check that it belongs to this file."
            )
        _, mask = inside(contour)
        place = array[x : x + w, y : y + h, contour.slice]
        place[mask] = not contour.excludes
    turned, _ = canonical(array, like.native.affine)
    label = np.ascontiguousarray(turned)[None]
    return replace(like, array=label, kind="label", findings=())
