r"""Arrays with their grid as images in memory of SimpleITK, and its transforms as affine maps.

World axes of ITK point to L, P, S. With :math:`F = \operatorname{diag}(-1, -1, 1, 1)`

.. math:: A_\text{LPS} = F A_\text{RAS}, \qquad T_\text{RAS} = F\,T_\text{LPS}\,F,

the first for an affine from voxels to millimetres, the second for a map between millimetres.
Files are never read or written by ITK: it does not check them.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from volumediff.data.grid import Grid

if TYPE_CHECKING:
    import SimpleITK

__all__ = ["from_itk", "matrix_of", "to_itk", "transform_of"]

FLIP = np.diag([-1.0, -1.0, 1.0, 1.0])


def to_itk(x: Shaped[np.ndarray, "d h w"], grid: Grid) -> "SimpleITK.Image":
    """A copy of the array with its geometry; the axes of ITK are d, h, w in this order."""
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(x.transpose(2, 1, 0)))
    lps = FLIP @ grid.affine
    spacing = np.asarray(grid.spacing_mm)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def from_itk(image: "SimpleITK.Image") -> Shaped[np.ndarray, "d h w"]:
    """The voxels alone."""
    import SimpleITK as sitk

    return np.ascontiguousarray(sitk.GetArrayFromImage(image).transpose(2, 1, 0))


def matrix_of(transform: "SimpleITK.Transform") -> Float[np.ndarray, "4 4"]:
    """An affine transform of ITK as a map between RAS millimetres."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    columns = [np.array(transform.TransformPoint(tuple(e))) - origin for e in np.eye(3).tolist()]
    lps = np.eye(4)
    lps[:3, :3], lps[:3, 3] = np.stack(columns, axis=1), origin
    return FLIP @ lps @ FLIP


def transform_of(
    matrix: Float[np.ndarray, "4 4"], *, centre_mm: Float[np.ndarray, "3"]
) -> "SimpleITK.AffineTransform":
    """A map between RAS millimetres as ITK's, turning and scaling about a fixed point."""
    import SimpleITK as sitk

    lps = FLIP @ matrix @ FLIP
    centre = FLIP[:3, :3] @ centre_mm
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(lps[:3, :3].ravel().tolist())
    transform.SetCenter(centre.tolist())
    # y = M (x - c) + t + c
    transform.SetTranslation((lps[:3, 3] + lps[:3, :3] @ centre - centre).tolist())
    return transform
