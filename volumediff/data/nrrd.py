"""NRRD volumes, as the MS lesion challenge of 2008 publishes them: a header and raw voxels.

SimpleITK reads them; its world axes point to L, P, S.
"""

from pathlib import Path

import numpy as np

from volumediff.data.grid import Grid
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.stored import StoredVolume
from volumediff.data.stream import open_regular
from volumediff.errors import DataError

__all__ = ["read_stored"]


def read_stored(path: Path, policy: ReadPolicy) -> StoredVolume:
    """Reads one volume of real numbers.

    Raises:
        DataError: no NRRD file, its voxels are missing, or it is no 3D volume
    """
    import SimpleITK as sitk

    with open_regular(path):
        pass
    warn = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would write to stderr
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO("NrrdImageIO")
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or reader.GetNumberOfComponents() != 1:
            raise DataError(f"{path}: expected a 3D volume of numbers, got size {size}.")
        if 8 * np.prod(size, dtype=float) > policy.budget_bytes:
            raise DataError(f"{path}: {size} voxels are more than the budget; raise it.")
        image = reader.Execute()
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(f"{path}: cannot be read as NRRD ({last}).") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warn)
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)  # z, y, x -> x, y, z
    x, y, z = array.shape
    return StoredVolume(array[..., None], Grid((x, y, z), affine))
