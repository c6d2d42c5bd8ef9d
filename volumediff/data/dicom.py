r"""One DICOM series in a folder -> a volume in Hounsfield units (CT) or scanner units.

SimpleITK sorts, decodes and rescales the slices. Its world axes point to L, P, S; in RAS

.. math:: A = \operatorname{diag}(-1, -1, 1, 1)\, A_\text{LPS}.

A series whose slices are not evenly spaced, parallel and complete has no affine: it is refused.
"""

from pathlib import Path

import numpy as np

from volumediff.data.dicom_folders import is_dicom
from volumediff.data.grid import Grid
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.remarks import Remark
from volumediff.data.stored import StoredVolume
from volumediff.errors import DataError

__all__ = ["modality", "read_series", "series_grid"]

POSITION, ORIENTATION, THICKNESS = "0020|0032", "0020|0037", "0018|0050"
FRAMES, ROWS, COLUMNS, PIXEL_SPACING = "0028|0008", "0028|0010", "0028|0011", "0028|0030"
SAMPLES, MODALITY = "0028|0002", "0008|0060"
# Slice positions are written with few decimals; a hundredth of the spacing covers the rounding.
UNEVEN = 0.01


def read_series(folder: Path, policy: ReadPolicy, *, series: str | None = None) -> StoredVolume:
    """Reads the one series of a folder, or the one with the given series instance UID.

    Raises:
        DataError: no series, several, or one with missing, uneven or differing slices
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with a DICOM series.")
    if not any(is_dicom(p) for p in folder.iterdir()):
        raise DataError(
            f"{folder}: expected a NIfTI file or a DICOM series, this folder has none."
        )
    import SimpleITK as sitk

    warn = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would write to stderr
    try:
        files = _series(sitk, folder, series)
        thickness = _check_slices(_slices(sitk, files, folder), folder, policy)
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(files)
        # float32 for all slices: the slope of a PET slice may differ from that of the first
        reader.SetOutputPixelType(sitk.sitkFloat32)
        image = reader.Execute()
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(f"{folder}: the DICOM series cannot be read ({last}).") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warn)
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)  # z, y, x -> x, y, z
    spacing = np.array([*image.GetSpacing()[:2], thickness or image.GetSpacing()[2]])
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * spacing
    affine[:3, 3] = image.GetOrigin()
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    x, y, z = array.shape
    flat = Remark("info", "single_slice", "one voxel thick along an axis")
    thin = (flat,) if z == 1 else ()
    raw = array[..., None].astype(np.float32, copy=False)
    return StoredVolume(raw, Grid((x, y, z), affine), thin)


def modality(path: Path) -> str:
    """What a DICOM file is of, such as CT; nothing where it cannot be read."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("GDCMImageIO")
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return ""
    return reader.GetMetaData(MODALITY).strip() if reader.HasMetaDataKey(MODALITY) else ""


def series_grid(folder: Path) -> Grid:
    """Where the voxels of a folder's one series lie, as `read_series` has it, from its headers.

    Raises:
        DataError: as `read_series`
    """
    import SimpleITK as sitk

    slices = _slices(sitk, _series(sitk, folder, None), folder)
    thickness = _check_slices(slices, folder, ReadPolicy())
    first, along = slices[0], slices[0][ORIENTATION].reshape(2, 3)
    across = np.cross(along[0], along[1])
    positions = sorted((entry[POSITION] for entry in slices), key=lambda p: float(p @ across))
    step = across * (thickness or 0.0)
    if len(positions) > 1:
        step = (positions[-1] - positions[0]) / (len(positions) - 1)
    affine = np.eye(4)
    # PixelSpacing is the distance of rows, then of columns
    affine[:3, 0] = along[0] * first[PIXEL_SPACING][1]
    affine[:3, 1] = along[1] * first[PIXEL_SPACING][0]
    affine[:3, 2] = step
    affine[:3, 3] = positions[0]
    shape = (int(first[COLUMNS][0]), int(first[ROWS][0]), len(slices))
    return Grid(shape, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def _series(sitk: object, folder: Path, wanted: str | None) -> list[str]:
    reader = sitk.ImageSeriesReader
    found = sorted(reader.GetGDCMSeriesIDs(str(folder)))
    if wanted is None and len(found) != 1:
        raise DataError(
            f"{folder}: expected one DICOM series, got {len(found)}; put each in a folder of its "
            "own, or name the series."
        )
    if wanted is not None and wanted not in found:
        raise DataError(f"{folder}: no series {wanted}; it has {len(found)}: {', '.join(found)}.")
    return list(reader.GetGDCMSeriesFileNames(str(folder), wanted or found[0]))


def _slices(sitk: object, files: list[str], folder: Path) -> list[dict[str, np.ndarray]]:
    """Numbers of the tags that decide on geometry, slice by slice."""
    result = []
    for name in files:
        reader = sitk.ImageFileReader()
        reader.SetFileName(name)
        reader.SetImageIO("GDCMImageIO")
        reader.ReadImageInformation()
        have = set(reader.GetMetaDataKeys())

        def numbers(tag: str, reader: object = reader, have: set[str] = have) -> np.ndarray:
            text = reader.GetMetaData(tag) if tag in have else ""
            return np.array([float(v) for v in text.split("\\") if v.strip()])

        tags = (POSITION, ORIENTATION, THICKNESS, FRAMES, ROWS, COLUMNS, PIXEL_SPACING, SAMPLES)
        try:
            entry = {tag: numbers(tag) for tag in tags}
        except ValueError as error:
            raise DataError(f"{name}: a geometry tag is no number ({error}).") from error
        if entry[POSITION].size != 3 or entry[ORIENTATION].size != 6:
            raise DataError(
                f"{name}: expected ImagePositionPatient and ImageOrientationPatient, one is "
                f"missing; convert the series in {folder} to NIfTI."
            )
        result.append(entry)
    return result


def _check_slices(
    slices: list[dict[str, np.ndarray]], folder: Path, policy: ReadPolicy
) -> float | None:
    """Refuses what has no affine; returns the thickness when there is one slice only."""
    first = slices[0]
    if first[FRAMES].size and first[FRAMES][0] > 1:
        raise DataError(f"{folder}: multi-frame DICOM; convert it to NIfTI first.")
    if first[SAMPLES].size and first[SAMPLES][0] != 1:
        raise DataError(f"{folder}: expected grey values, got colour; this is no volume.")
    for tag, what in (
        (ORIENTATION, "orientation"),
        (PIXEL_SPACING, "pixel spacing"),
        (ROWS, "rows"),
        (COLUMNS, "columns"),
    ):
        for entry in slices:
            same = entry[tag].shape == first[tag].shape
            if not same or not np.allclose(entry[tag], first[tag], rtol=0, atol=1e-4):
                raise DataError(
                    f"{folder}: expected slices of one volume, they differ in {what} "
                    f"({first[tag].tolist()} and {entry[tag].tolist()}); separate them."
                )
    need = 4 * len(slices) * int(first[ROWS][0]) * int(first[COLUMNS][0])
    if need > policy.budget_bytes:
        raise DataError(
            f"{folder}: the series needs {need / 2**30:.3g} GiB, more than the budget; raise the "
            "read policy's `budget_bytes`."
        )
    if len(slices) == 1:
        if not first[THICKNESS].size or first[THICKNESS][0] <= 0:
            raise DataError(f"{folder}: one slice without SliceThickness has no third dimension.")
        return float(first[THICKNESS][0])
    _check_spacing(slices, folder)
    return None


def _check_spacing(slices: list[dict[str, np.ndarray]], folder: Path) -> None:
    across = np.cross(slices[0][ORIENTATION][:3], slices[0][ORIENTATION][3:])
    positions = np.array([entry[POSITION] for entry in slices])
    positions = positions[np.argsort(positions @ across)]
    steps = np.diff(positions, axis=0)
    gaps = steps @ across
    usual = float(np.median(gaps))
    if gaps.min() <= UNEVEN * abs(usual):
        raise DataError(f"{folder}: two slices at one position (phases or echoes); separate them.")
    uneven = int(np.abs(gaps - usual).argmax())
    if abs(gaps[uneven] - usual) > UNEVEN * usual:
        raise DataError(
            f"{folder}: slices are not evenly spaced: usually {usual:.4g} mm, but "
            f"{gaps[uneven]:.4g} mm between slices {uneven + 1} and {uneven + 2}; "
            "a slice is missing, or the spacing varies."
        )
    sideways = np.linalg.norm(steps - gaps[:, None] * across, axis=1)
    if sideways.max() > 0.02 * usual:  # the same limit as for the shear of a NIfTI form
        raise DataError(
            f"{folder}: slices are shifted sideways by {sideways.max():.3g} mm from one to the "
            "next (gantry tilt); convert the series with a tool that corrects it."
        )
