r"""Arrays with their grid as images in memory of SimpleITK.

World axes of ITK point to L, P, S: with :math:`F = \operatorname{diag}(-1, -1, 1, 1)`, an affine
from voxels to millimetres is :math:`A_\text{LPS} = F A_\text{RAS}`. Files are never read or
written by ITK: it does not check them.
"""

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Shaped

from volumediff.data.grid import Grid

if TYPE_CHECKING:
    import SimpleITK

__all__ = ["from_itk", "to_itk"]

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
