"""Frames -> voxels in Hounsfield or scanner units.

Stored values are scaled and never inverted: MONOCHROME1 says how to show them, not what they mean.
"""

import warnings
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import pixel_array
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from volumediff.data.dicom_files.geometry import Geometry
from volumediff.data.dicom_files.headers import DicomFrame
from volumediff.errors import DataError

__all__ = ["voxels_of"]


def voxels_of(geometry: Geometry) -> np.ndarray:
    """The volume (columns, rows, slices) in float32.

    Raises:
        DataError: a file whose pixel data are missing, cut off, or of a coding nobody decodes
    """
    frames = geometry.frames
    rows, columns = frames[0].size
    stack = np.empty((len(frames), rows, columns), np.float32)
    place = {(frame.file, frame.index): k for k, frame in enumerate(frames)}
    # the frames of a file stand together, in the order in which they are decoded
    ordered = sorted(frames, key=lambda frame: (frame.file, frame.index))
    for path, group in groupby(ordered, key=lambda frame: frame.file):
        for frame, stored in _decoded(path, list(group)):
            if stored.shape != (rows, columns):
                raise DataError(f"{path}: expected {rows} x {columns} voxels, got {stored.shape}.")
            slope = 1.0 if frame.slope is None else frame.slope
            scaled = stored * slope + (frame.intercept or 0.0)
            stack[place[path, frame.index]] = scaled
    volume = stack.transpose(2, 1, 0)
    return _shifted(volume, geometry) if geometry.shifts.any() else volume


def _decoded(path: Path, frames: list[DicomFrame]) -> Iterator[tuple[DicomFrame, np.ndarray]]:
    """Every frame of a file with its stored values."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of padding and of tags beside the voxels
            found = pixel_array(_whole_file(path), raw=True)
    except Exception as error:  # whatever a decoder makes of damaged bytes
        raise DataError(_undecoded(path, error)) from error
    found = found if found.ndim == 3 else found[None]
    if frames[0].corner is not None:
        found = [_tile(picture, frame) for picture in found for frame in frames]
    if len(found) != len(frames):
        raise DataError(
            f"{path}: expected {len(frames)} frames of pixel data, got {len(found)}; the file is "
            "damaged. Export the series again."
        )
    for frame, stored in zip(frames, found, strict=True):
        yield frame, stored.astype(np.float64)


def _tile(picture: np.ndarray, frame: DicomFrame) -> np.ndarray:
    """The voxels of a slice in the picture of a mosaic."""
    (row, column), (rows, columns) = frame.corner or (0, 0), frame.size
    return picture[row : row + rows, column : column + columns]


def _whole_file(path: Path) -> Dataset:
    content = pydicom.dcmread(path, force=True)
    if "TransferSyntaxUID" not in content.file_meta:  # a file without preamble
        implicit, little = content.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        content.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return content


def _undecoded(path: Path, error: Exception) -> str:
    lines = str(error).strip().splitlines()
    reason = (lines[-1] if lines else type(error).__name__).partition(" - ")[0].rstrip(".")[:200]
    return (
        f"{path}: its pixel data cannot be decoded ({reason}); the file is damaged, or coded in a "
        "way that is not read. Export the series again, or convert it with dcm2niix."
    )


def _shifted(volume: np.ndarray, geometry: Geometry) -> np.ndarray:
    """Slices moved within their planes, linearly interpolated; the volume's least value around."""
    result = np.full(geometry.shape, volume.min(), np.float32)
    columns, rows = volume.shape[:2]
    for k, shift in enumerate(geometry.shifts):
        padded = np.pad(volume[..., k], 1, constant_values=volume.min())
        whole = np.floor(shift).astype(int)
        for axis, part in enumerate(shift - whole):
            # between a voxel and the one before it; the border takes in what is shifted out
            padded = (1 - part) * padded + part * np.roll(padded, 1, axis)
        x, y = np.minimum(whole, np.array(geometry.shape[:2]) - (columns, rows))
        kept = padded[1 : columns + 2, 1 : rows + 2]
        room = result[x : x + columns + 1, y : y + rows + 1, k]
        room[:] = kept[: room.shape[0], : room.shape[1]]
    return result
