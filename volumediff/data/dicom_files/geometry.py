r"""Frames -> their order along the stack, and the affine of the volume.

With directions r (along a row), c (along a column), spacings and the frames' positions p_k sorted
along n = r x c, the step from slice to slice is the slope of the straight line that fits p_k best.
A stack whose step is not along n was scanned with a tilted gantry; its slices are shifted within
their planes so that the grid becomes rectangular.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.data.dicom_files.headers import DicomFrame
from volumediff.data.remarks import Remark
from volumediff.errors import DataError

__all__ = ["Geometry", "geometry_of"]

# How far a slice may lie from an even stack, in parts of the spacing.
UNEVEN = 0.01
# Sideways step in parts of the spacing: the same limit as for the shear of a NIfTI form.
SHEAR = 0.02


@dataclass(frozen=True)
class Geometry:
    """A stack of frames.

    Arguments:
        frames: in order along the normal
        affine: from voxel indices (column, row, slice) to millimetres along L, P, S
        shape: columns, rows, slices
        shifts: of every slice within its plane, in voxels along columns and rows, for a tilted
            gantry; whole and broken parts; zeros for all others
        remarks: on the stack
    """

    frames: list[DicomFrame]
    affine: np.ndarray
    shape: tuple[int, int, int]
    shifts: np.ndarray
    remarks: list[Remark] = field(default_factory=list)


def geometry_of(frames: list[DicomFrame], folder: Path) -> Geometry:
    """The volume that frames make up.

    Raises:
        DataError: frames that differ, lie unevenly, twice at one place, or have no thickness
    """
    _check_alike(frames, folder)
    first = frames[0]
    along = np.reshape(first.orientation, (2, 3))
    lengths = np.linalg.norm(along, axis=1)
    if not np.allclose(lengths, 1, atol=1e-3) or abs(along[0] @ along[1]) > 1e-3:
        raise DataError(
            f"{first.file}: expected two perpendicular directions of length 1 as "
            f"ImageOrientationPatient, got {list(first.orientation)}; the file is damaged."
        )
    if min(first.spacing) <= 0:
        raise DataError(f"{first.file}: expected a PixelSpacing above 0, got {first.spacing}.")
    normal = np.cross(along[0], along[1])
    frames = sorted(frames, key=lambda frame: float(frame.position @ normal))
    remarks = _rescale_remarks(frames)
    if len(frames) == 1:
        if first.thickness is None:
            raise DataError(
                f"{first.file}: one slice without SliceThickness has no third dimension; add the "
                "other slices."
            )
        step, start = normal * first.thickness, np.array(first.position)
    else:
        start, step = _step(frames, normal, folder, remarks)
    affine = np.eye(4)
    # PixelSpacing is the distance of rows, then of columns
    affine[:3, 0] = along[0] * first.spacing[1]
    affine[:3, 1] = along[1] * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, start
    rows, columns = first.size
    geometry = Geometry(
        frames, affine, (columns, rows, len(frames)), np.zeros((len(frames), 2)), remarks
    )
    return _untilted(geometry, normal)


def _check_alike(frames: list[DicomFrame], folder: Path) -> None:
    first = frames[0]
    for what, value in _properties():
        for frame in frames:
            here, there = value(frame), value(first)
            same = np.allclose(here, there, rtol=0, atol=1e-4) if _numeric(here) else here == there
            if not same:
                raise DataError(
                    f"{folder}: expected slices of one volume, {first.file.name} and "
                    f"{frame.file.name} differ in {what} ({there} and {here}); separate them."
                )


def _properties() -> list[tuple[str, Callable[[DicomFrame], Any]]]:
    def coding(name: str) -> tuple[str, Callable[[DicomFrame], Any]]:
        return name, lambda frame: frame.coding[name]

    return [
        ("orientation", lambda frame: frame.orientation),
        ("pixel spacing", lambda frame: frame.spacing),
        ("rows and columns", lambda frame: frame.size),
        ("whether they have a RescaleSlope", lambda frame: frame.slope is None),
        ("whether they have a RescaleIntercept", lambda frame: frame.intercept is None),
        *map(coding, ("Modality", "PhotometricInterpretation", "BitsAllocated")),
        coding("PixelRepresentation"),
    ]


def _numeric(value: Any) -> bool:
    return isinstance(value, tuple)


def _rescale_remarks(frames: list[DicomFrame]) -> list[Remark]:
    """CT is scaled alike throughout a series; PET and MR may change from slice to slice."""
    if frames[0].coding["Modality"] != "CT":
        return []
    scales = [(frame.slope, frame.intercept) for frame in frames]
    usual = max(set(scales), key=scales.count)
    other = [f.file.name for f, scale in zip(frames, scales, strict=True) if scale != usual]
    if not other:
        return []
    text = f"{', '.join(other[:3])} scaled otherwise than the other slices of this CT"
    return [Remark("warning", "rescale_differs", text)]


def _step(
    frames: list[DicomFrame], normal: np.ndarray, folder: Path, remarks: list[Remark]
) -> tuple[np.ndarray, np.ndarray]:
    """The first position and the step of the even stack that fits the frames."""
    positions = np.array([frame.position for frame in frames])
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    closest = int(gaps.argmin())
    if gaps[closest] <= UNEVEN * abs(usual):
        raise DataError(_twice(frames[closest], frames[closest + 1], folder))
    # Rounded positions lie evenly but for the last decimal that was written.
    written = 10.0 ** -max(frame.decimals for frame in frames)
    rounding = written if written < usual / 4 else 0.0
    index = np.arange(len(frames))
    slope, start = np.polyfit(index, positions, 1)
    apart = np.abs(positions - (start + index[:, None] * slope)).max()
    uneven = int(np.abs(gaps - usual).argmax())
    if abs(gaps[uneven] - usual) > UNEVEN * usual:
        if apart > rounding:
            raise DataError(
                f"{folder}: slices are not evenly spaced: usually {usual:.4g} mm, but "
                f"{gaps[uneven]:.4g} mm between {frames[uneven].file.name} and "
                f"{frames[uneven + 1].file.name}; a slice is missing, or the spacing varies."
            )
        thickness = frames[0].thickness or 0.0
        if abs(thickness - slope @ normal) * (len(frames) - 1) <= rounding:
            slope = slope * thickness / (slope @ normal)
            start = (positions - index[:, None] * slope).mean(axis=0)
        even = f"{slope @ normal:.4g} mm"
        text = f"positions are rounded to {written:g} mm; an even spacing of {even} fits them"
        remarks.append(Remark("info", "rounded_positions", text))
    elif apart > max(UNEVEN * usual, rounding):
        raise DataError(
            f"{folder}: slices do not lie on a straight line ({apart:.3g} mm beside it); "
            "separate the volumes, or convert the series with a tool that resamples them."
        )
    else:
        slope, start = (positions[-1] - positions[0]) / (len(frames) - 1), positions[0]
    return start, slope


def _twice(one: DicomFrame, other: DicomFrame, folder: Path) -> str:
    if one.file != other.file and one.instance == other.instance:
        return (
            f"{folder}: {one.file.name} and {other.file.name} are the same slice; delete one of "
            "them."
        )
    names = " and ".join(dict.fromkeys((one.file.name, other.file.name)))
    return (
        f"{folder}: two slices at one position ({names}): phases, echoes or time points; separate "
        "them, as dcm2niix does."
    )


def _untilted(geometry: Geometry, normal: np.ndarray) -> Geometry:
    """Shifts slices of a tilted gantry into a rectangular grid that holds all of them."""
    step = geometry.affine[:3, 2]
    spacing = float(step @ normal)
    sideways = step - spacing * normal
    if np.linalg.norm(sideways) <= SHEAR * spacing:
        return geometry
    axes = geometry.affine[:3, :2]
    per_slice = np.array([sideways @ axis / (axis @ axis) for axis in axes.T])
    shifts = np.arange(geometry.shape[2])[:, None] * per_slice
    lowest = np.floor(shifts.min(axis=0))
    grown = np.ceil(shifts.max(axis=0)) - lowest
    affine = geometry.affine.copy()
    affine[:3, 2] = spacing * normal
    affine[:3, 3] += axes @ lowest
    columns, rows = (int(n) for n in np.array(geometry.shape[:2]) + grown)
    angle = np.degrees(np.arctan2(np.linalg.norm(sideways), spacing))
    remark = Remark(
        "warning",
        "gantry_tilt",
        f"scanned with a gantry tilted by {angle:.1f} degrees: slices are shifted, by linear "
        "interpolation, into a rectangular grid",
    )
    return Geometry(
        geometry.frames,
        affine,
        (columns, rows, geometry.shape[2]),
        shifts - lowest,
        [*geometry.remarks, remark],
    )
