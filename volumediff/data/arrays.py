"""Arrays and images in memory: shape, numbers and affine are judged as those of files are."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Shaped

from volumediff.data.forms import affine_of, defect
from volumediff.data.grid import Grid
from volumediff.data.header import MM_PER_UNIT, Header, parse
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.remarks import Remark
from volumediff.errors import DataError

__all__ = ["nibabel_grid", "nibabel_image", "real_numbers", "spatial_shape", "usable_affine"]


def spatial_shape(shape: Sequence[int], name: str) -> tuple[int, int, int]:
    """The three spatial sizes of (i, j, k) or (c, i, j, k).

    Raises:
        DataError: another number of axes, or no voxels
    """
    if len(shape) not in (3, 4) or min(shape) < 1:
        raise DataError(
            f"{name}: expected (i, j, k) or (c, i, j, k), got the shape {tuple(shape)}; stack "
            "slices along a third axis."
        )
    return int(shape[-3]), int(shape[-2]), int(shape[-1])


def usable_affine(affine: object, name: str) -> Float[np.ndarray, "4 4"]:
    """The affine in float64.

    Raises:
        DataError: not 4 x 4, NaN, singular, or with axes that are not at right angles
    """
    try:
        matrix = np.array(affine, np.float64)
    except (TypeError, ValueError):
        matrix = np.empty(0)
    if matrix.shape != (4, 4):
        raise DataError(
            f"{name}: expected an affine of 4 x 4 numbers from voxels to RAS millimetres, got "
            f"{type(affine).__name__} of shape {matrix.shape}; give it as image.affine of nibabel."
        )
    reason = defect(matrix)
    if reason is None and not np.array_equal(matrix[3], [0, 0, 0, 1]):
        reason = f"its last row is {matrix[3].tolist()}, not 0, 0, 0, 1"
    if reason is not None:
        raise DataError(f"{name}: expected a usable affine, but {reason}; correct it.")
    return matrix


def real_numbers(array: object, name: str) -> Shaped[np.ndarray, "..."]:
    """The array as integers or floating point numbers.

    Raises:
        DataError: complex numbers, colours, text or objects
    """
    found = np.asarray(array)
    if found.dtype == bool:
        return found.astype(np.uint8)
    if found.dtype.kind not in "iuf":
        raise DataError(
            f"{name}: expected real numbers, got {found.dtype}; convert it to float32 or int16."
        )
    return found


def nibabel_grid(
    image: nib.spatialimages.SpatialImage,
    shape: tuple[int, int, int],
    policy: ReadPolicy,
    name: str,
) -> tuple[Grid, tuple[Remark, ...]]:
    """Grid of an image of nibabel, by the rules of files where it has a NIfTI header.

    Raises:
        DataError: no orientation, forms that disagree, or an affine that is none
    """
    if not isinstance(image, nib.Nifti1Pair):
        return Grid(shape, usable_affine(image.affine, name)), ()
    raw = image.header.binaryblock
    fields = parse(raw)
    if not int(fields["sform_code"]) and not int(fields["qform_code"]):
        raise DataError(
            f"{name}: has no orientation (sform and qform code are both 0); set it, as in "
            "image.set_sform(affine, code=1), or give (array, affine)."
        )
    unit = MM_PER_UNIT.get(int(fields["xyzt_units"]) & 7, 1.0)
    header = Header(raw, fields, (*shape, 1), np.dtype(np.float32), 0, 1.0, 0.0, unit)
    affine, remarks = affine_of(header, policy, Path(name))
    if unit == 1 and np.allclose(affine, image.affine, rtol=1e-5, atol=1e-3):
        affine = usable_affine(image.affine, name)  # the header holds it in single precision
    return Grid(shape, affine, raw), remarks


def nibabel_image(array: Shaped[np.ndarray, "c i j k"], grid: Grid) -> nib.Nifti1Image:
    """Channels in the voxel order of a grid as an image of nibabel, with the grid's form codes."""
    stored = array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)
    stored = stored.astype(np.uint8) if stored.dtype == bool else stored
    image = nib.Nifti1Image(stored, grid.affine)
    codes = {"sform": 1, "qform": 1}
    if grid.header is not None:
        fields = parse(grid.header)
        codes = {form: int(fields[f"{form}_code"]) for form in codes}
    # the forms of the header alone: the image keeps its affine in double precision
    image.header.set_sform(grid.affine, codes["sform"])
    image.header.set_qform(grid.affine, codes["qform"])
    image.header.set_xyzt_units("mm")
    return image
