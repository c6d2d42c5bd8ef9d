r"""Where voxels lie: a grid is a shape and an affine.

.. math:: x_\text{mm} = A (i, j, k, 1)^T

maps voxel centres to millimetres in RAS world coordinates. In memory every array is canonical:
its axes are the ones closest to R, A, S, reached by flips and permutations alone, which lose
nothing. A file's own grid is kept beside it, so that results can go back.
"""

from dataclasses import dataclass, field
from itertools import product

import numpy as np
from jaxtyping import Float, Int, Shaped
from nibabel.orientations import (
    aff2axcodes,
    apply_orientation,
    inv_ornt_aff,
    io_orientation,
    ornt_transform,
)

__all__ = [
    "Grid",
    "agree",
    "canonical",
    "canonical_box",
    "canonical_grid",
    "displacement_mm",
    "from_canonical",
    "native_order",
]

# Image and mask count as one grid up to a tenth of a voxel: rounding of float32 forms and of
# quaternions stays below a hundredth, and the next real error, half a voxel, is well above.
TOLERANCE_VOXELS = 0.1

RAS = np.array([[0, 1], [1, 1], [2, 1]])


@dataclass(frozen=True, eq=False)
class Grid:
    """Shape and affine of a volume, with the header bytes of the file that it came from.

    Arguments:
        shape: voxels along the three axes
        affine: voxel index to RAS millimetres
        header: the file's NIfTI header when there was one and its forms are plain; outputs repeat
            them exactly
    """

    shape: tuple[int, int, int]
    affine: Float[np.ndarray, "4 4"]
    header: bytes | None = field(default=None, repr=False)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        d, h, w = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return d, h, w

    @property
    def axes(self) -> str:
        """Directions in which the axes point, such as `LPS`."""
        return "".join(aff2axcodes(self.affine))

    def corners_mm(self) -> Float[np.ndarray, "8 3"]:
        """World coordinates of the eight corner voxels."""
        ends = np.array(list(product(*((0.0, n - 1.0) for n in self.shape))))
        return ends @ self.affine[:3, :3].T + self.affine[:3, 3]


def _orientation(affine: Float[np.ndarray, "4 4"]) -> Shaped[np.ndarray, "3 2"]:
    """For each axis of the file: the canonical axis it becomes, and its sign."""
    return io_orientation(affine)


def canonical(
    array: Shaped[np.ndarray, "a b c *extra"], affine: Float[np.ndarray, "4 4"]
) -> tuple[Shaped[np.ndarray, "d h w *extra"], Float[np.ndarray, "4 4"]]:
    """The array with its axes along R, A, S, and the affine that goes with it."""
    orientation = _orientation(affine)
    moved = affine @ inv_ornt_aff(orientation, array.shape[:3])
    return apply_orientation(array, orientation), moved


def canonical_grid(grid: Grid) -> Grid:
    """The canonical grid of a file's own grid."""
    orientation = _orientation(grid.affine)
    # the shape follows the permutation: axis i of the file becomes axis orientation[i, 0]
    shape = [0, 0, 0]
    for size, (axis, _) in zip(grid.shape, orientation, strict=True):
        shape[int(axis)] = size
    affine = grid.affine @ inv_ornt_aff(orientation, grid.shape)
    return Grid((shape[0], shape[1], shape[2]), affine)


def canonical_box(
    box: tuple[int, int, int, int, int, int], grid: Grid
) -> tuple[int, int, int, int, int, int]:
    """A box of voxels of the file's own grid, ends exclusive, in the canonical array."""
    low, high = [0, 0, 0], [0, 0, 0]
    for i, (axis, sign) in enumerate(_orientation(grid.affine)):
        a, b, n = box[i], box[i + 3], grid.shape[i]
        low[int(axis)], high[int(axis)] = (a, b) if sign > 0 else (n - b, n - a)
    return low[0], low[1], low[2], high[0], high[1], high[2]


def from_canonical(
    array: Shaped[np.ndarray, "d h w *extra"], grid: Grid
) -> Shaped[np.ndarray, "a b c *extra"]:
    """The canonical array in the axis order and directions of a file's own grid."""
    back: Int[np.ndarray, "3 2"] = ornt_transform(RAS, _orientation(grid.affine))
    return apply_orientation(array, back)


def native_order(
    array: Shaped[np.ndarray, "c d h w"], grid: Grid
) -> Shaped[np.ndarray, "c i j k"]:
    """Canonical channels in the voxel order of a file or image, channels still first.

    Arguments:
        array: axes along R, A, S
        grid: of the file or image
    """
    moved = from_canonical(np.moveaxis(array, 0, -1), grid)
    return np.ascontiguousarray(np.moveaxis(moved, -1, 0))


def displacement_mm(a: Grid, b: Grid) -> float:
    """The largest distance between equal voxels of two canonical grids of one shape."""
    return float(np.linalg.norm(a.corners_mm() - b.corners_mm(), axis=1).max())


def agree(a: Grid, b: Grid) -> str | None:
    """None where two canonical grids are one up to rounding, else how they differ.

    Displacement between two affine maps is largest at a corner, so eight points decide.
    """
    if a.shape != b.shape:
        return f"shapes {_by(a.shape)} and {_by(b.shape)} (R x A x S)"
    distance = displacement_mm(a, b)
    if distance <= TOLERANCE_VOXELS * min(a.spacing_mm + b.spacing_mm):
        return None
    if not np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-2, atol=0):
        return f"spacings {_mm(a.spacing_mm)} and {_mm(b.spacing_mm)}"
    return f"positions that differ by up to {distance:.3g} mm"


def _by(shape: tuple[int, int, int]) -> str:
    return "x".join(map(str, shape))


def _mm(spacing: tuple[float, float, float]) -> str:
    return "/".join(f"{s:.4g}" for s in spacing) + " mm"
