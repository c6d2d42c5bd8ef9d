"""The DICOM series of a volume: its headers in the order of the slices, for objects that refer to
them and lie where they lie."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from jaxtyping import Shaped
from pydicom.dataset import Dataset

from volumediff.data.dicom_files.geometry import geometry_of
from volumediff.data.dicom_files.headers import frames_of_series
from volumediff.data.grid import Grid, native_order
from volumediff.errors import DataError

__all__ = ["MAY_BE_EMPTY", "SourceSeries", "read_source_series"]

NEED = "DICOM output needs the geometry of the series itself"
# Of patient and study (PS3.3, C.7.1.1 and C.7.2.1): they must be there, and may be empty.
MAY_BE_EMPTY = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("StudyID", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName"),
)


@dataclass(frozen=True, eq=False)
class SourceSeries:
    """The images of a series.

    Arguments:
        images: headers without voxels; one per slice along the stack, or one file of many frames
        order: for every frame of the images its slice along the stack
        grid: of the volume that was read from them: columns, rows, slices
    """

    images: tuple[Dataset, ...]
    order: tuple[int, ...]
    grid: Grid

    @property
    def uid(self) -> str:
        return str(self.images[0].SeriesInstanceUID)

    @property
    def modality(self) -> str:
        return str(self.images[0].get("Modality", ""))

    def frames(self, array: Shaped[np.ndarray, "d h w"]) -> Shaped[np.ndarray, "f rows columns"]:
        """An array along R, A, S as the frames of the images."""
        stack = native_order(array[None], self.grid)[0].transpose(2, 1, 0)
        return np.ascontiguousarray(stack[list(self.order)])


def read_source_series(
    folder: Path | None, grid: Grid, read_policy: Mapping[str, Any]
) -> SourceSeries:
    """The series that a volume was read from.

    Arguments:
        folder: that was given as the volume; None for an image in memory
        grid: of the volume, as it was read
        read_policy: decisions on ambiguous files, as results record them

    Raises:
        DataError: no series, one of a tilted gantry, without a frame of reference, or split over
            several files of many frames
    """
    if folder is None or not folder.is_dir():
        given = "an image in memory" if folder is None else folder
        raise DataError(f"{given}: expected the folder of a DICOM series; {NEED}.")
    frames = frames_of_series(folder, read_policy.get("series")).frames
    geometry = geometry_of(frames, folder)
    if geometry.shifts.any():
        raise DataError(
            f"{folder}: was scanned with a tilted gantry, and results lie on the rectangular grid "
            f"that its slices were shifted into; {NEED}. Use the NIfTI files."
        )
    if geometry.shape != grid.shape:
        raise DataError(
            f"{folder}: expected the series that was localized or segmented, got {geometry.shape} "
            f"columns, rows and slices instead of {grid.shape}; give the same series."
        )
    files = list(dict.fromkeys(frame.file for frame in geometry.frames))
    many = [frame.index for frame in geometry.frames]
    if len(files) == 1 and len(many) > 1:
        order = np.argsort(many).tolist()
    elif len(files) == len(many):
        order = list(range(len(many)))
    else:
        raise DataError(
            f"{folder}: its frames are spread over {len(files)} files of several frames each, to "
            "which no DICOM object can refer as one stack; use the NIfTI files."
        )
    depth = float(grid.spacing_mm[2])
    images = tuple(_header(path, depth) for path in files)
    return SourceSeries(images, tuple(order), grid)


def _header(path: Path, depth: float) -> Dataset:
    header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
    if not header.get("FrameOfReferenceUID"):
        raise DataError(
            f"{path}: has no FrameOfReferenceUID, so that nothing can be placed in its space; use "
            "the NIfTI files."
        )
    for keyword in MAY_BE_EMPTY:
        if keyword not in header:
            setattr(header, keyword, "")
    if "SliceThickness" not in header and "PixelSpacing" in header:
        header.SliceThickness = f"{depth:.6g}"
    if "SpacingBetweenSlices" in header:  # readers compare it with the positions, which decide
        header.SpacingBetweenSlices = f"{depth:.6g}"
    return header
