r"""Siemens mosaics: the slices of a volume as tiles of one picture.

N slices of R x C voxels lie row by row in a square of :math:`n = \lceil\sqrt N\rceil` tiles a
side. ImagePositionPatient is the corner of a slice as large as the whole picture about the same
centre; with directions r and c along rows and columns and spacings s_c and s_r, tile k begins at

.. math:: p_k = p + r s_c \tfrac{(n - 1) C}{2} + c s_r \tfrac{(n - 1) R}{2} + k\, \Delta\, m,

with Δ the SpacingBetweenSlices and m the normal of the CSA header, which alone says N and the
order of the slices.

References:
    https://nipy.org/nibabel/dicom/dicom_mosaic.html, whose reader of CSA headers is used
"""

import warnings
from dataclasses import dataclass
from math import ceil, sqrt
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from volumediff.errors import DataError

__all__ = ["Tile", "tiles_of"]

HELP = "convert the series with dcm2niix, which takes mosaics apart"


@dataclass(frozen=True)
class Tile:
    """One slice in a picture.

    Arguments:
        corner: its first row and column
        size: rows and columns
        position: of its first voxel's centre, in millimetres along L, P, S
    """

    corner: tuple[int, int]
    size: tuple[int, int]
    position: tuple[float, float, float]


def tiles_of(path: Path, header: Dataset) -> list[Tile]:
    """The slices of a mosaic, in their order.

    Raises:
        DataError: the CSA header or the distance of the slices is missing, or the picture is none
            of equal tiles
    """
    with warnings.catch_warnings(action="ignore"):  # the package says that its readers are young
        from nibabel.nicom import csareader as csa

    said = csa.get_csa_header(header)
    count = None if said is None else csa.get_n_mosaic(said)
    normal = None if said is None else csa.get_slice_normal(said)
    if not count or normal is None:
        raise DataError(
            f"{path}: is a Siemens mosaic without its CSA header (0029,1010), which alone says "
            f"how many slices it holds; {HELP}."
        )
    rows, columns = int(header.Rows), int(header.Columns)
    side = ceil(sqrt(count))
    if rows % side or columns % side:
        raise DataError(
            f"{path}: {count} slices need {side} x {side} tiles, and {rows} x {columns} voxels "
            f"cannot be cut so; {HELP}."
        )
    if not header.get("SpacingBetweenSlices"):
        raise DataError(f"{path}: is a mosaic without SpacingBetweenSlices; {HELP}.")
    size = rows // side, columns // side
    along = np.reshape(np.array(header.ImageOrientationPatient, float), (2, 3))
    row_mm, column_mm = map(float, header.PixelSpacing)
    first = np.array(header.ImagePositionPatient, float)
    first += along[0] * column_mm * (columns - size[1]) / 2
    first += along[1] * row_mm * (rows - size[0]) / 2
    step = np.array(normal, float) * float(header.SpacingBetweenSlices)
    found = []
    for k in range(count):
        x, y, z = (first + k * step).tolist()
        down, right = divmod(k, side)
        found.append(Tile((down * size[0], right * size[1]), size, (x, y, z)))
    return found
