"""Files of a folder -> the frames of one series, with all that decides on geometry and values.

A classic file holds one slice; an enhanced one holds many frames, whose geometry stands in its
functional groups (PS3.3, C.7.6.16). What is no image (reports, structures, plans, segmentations)
may lie beside a series and is named. A file that should be a slice and cannot be read is an error.
"""

import math
import warnings
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from volumediff.data.dicom_files.mosaic import tiles_of
from volumediff.data.dicom_files.recognition import is_dicom, is_named_like_dicom, pattern
from volumediff.data.read_policy import remedy
from volumediff.data.remarks import Remark
from volumediff.errors import DataError

__all__ = ["DicomFrame", "Series", "frames_of_series"]

pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE

# Storage classes (PS3.4, B.5) that hold no slices of a scan, by words of their names.
NO_SLICES = (
    "SR", "Report", "Structure", "RT ", "Segmentation", "Presentation State", "Key Object",
    "Waveform", "Encapsulated", "Media Storage Directory", "Registration", "Fiducials", "Raw Data",
    "Surface", "Measurements", "Tractography", "Real World Value", "Procedure Log", "Spectroscopy",
)  # fmt: skip
COLOURS = "PALETTE COLOR"


@dataclass(frozen=True)
class DicomFrame:
    """One slice.

    Arguments:
        file: that holds it
        index: its place among the frames of the file
        instance: the file's SOP instance UID
        position: of the first voxel's centre, in millimetres along L, P, S
        decimals: with how many the position is written
        orientation: directions along a row and along a column
        spacing: distance of rows and of columns in millimetres
        size: rows and columns
        thickness: in millimetres; None where the file does not say
        slope, intercept: stored value to Hounsfield or scanner unit; None where none is given
        coding: what must be alike in all slices of a volume, by the name it has in messages
        corner: its first row and column in the picture of a mosaic; None for one that is no tile
    """

    file: Path
    index: int
    instance: str
    position: tuple[float, ...]
    decimals: int
    orientation: tuple[float, ...]
    spacing: tuple[float, ...]
    size: tuple[int, int]
    thickness: float | None
    slope: float | None
    intercept: float | None
    coding: dict[str, Any]
    corner: tuple[int, int] | None = None


@dataclass(frozen=True)
class Series:
    """The frames of one series in no order, and remarks on what lies beside it."""

    frames: list[DicomFrame]
    remarks: list[Remark]


def frames_of_series(folder: Path, wanted: str | None) -> Series:
    """The frames of the folder's one series, or of that with the given series instance UID.

    Raises:
        DataError: none, several, a file that cannot be read, or one that is no slice of a volume
    """
    images, beside = _images(folder)
    series: dict[str, list[tuple[Path, Dataset]]] = defaultdict(list)
    for path, header in images:
        series[str(header.SeriesInstanceUID)].append((path, header))
    if not series:
        raise DataError(
            f"{folder}: expected one DICOM series of images, it has none: it holds "
            f"{_listed(beside)}. Give the folder of the scan."
        )
    if wanted is None and len(series) != 1:
        listed = "; ".join(map(_described, series.values()))
        raise DataError(
            f"{folder}: expected one DICOM series, got {len(series)}: {listed}. Put each in a "
            f"folder of its own, or {remedy(*(f'series={uid}' for uid in series))}."
        )
    if wanted is not None and wanted not in series:
        raise DataError(
            f"{folder}: no series {wanted}; it has {len(series)}: {', '.join(series)}."
        )
    chosen = series[wanted or next(iter(series))]
    remarks = []
    if beside:
        text = f"left out of the series, as no slices of it: {_listed(beside)}"
        remarks.append(Remark("info", "beside_series", text))
    frames = [frame for path, header in chosen for frame in _parsed(path, header)]
    return Series(frames, remarks)


def _described(files: list[tuple[Path, Dataset]]) -> str:
    """What people know a series by, with its UID and first file."""
    path, first = files[0]
    words = [str(first.get(name, "")).strip()[:40] for name in ("SeriesDescription", "Modality")]
    count = "1 file" if len(files) == 1 else f"{len(files)} files"
    parts = [*filter(None, words), count, path.name]
    return f"{first.SeriesInstanceUID} ({', '.join(parts)})"


def _listed(beside: dict[str, str]) -> str:
    """Files that hold no slices, with what they are."""
    named = ", ".join(f"{name} ({kind})" for name, kind in sorted(beside.items())[:5])
    return named + (f" and {len(beside) - 5} more" if len(beside) > 5 else "")


def _images(folder: Path) -> tuple[list[tuple[Path, Dataset]], dict[str, str]]:
    """Headers of the image files; names of the other objects, with what they are.

    Raises:
        DataError: a file that is DICOM, or is named like one, and cannot be read
    """
    files = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    dicom = [path for path in files if is_dicom(path)]
    patterns = {pattern(path.name) for path in dicom}
    images, beside = [], {}
    for path in files:
        if path not in dicom:
            if is_named_like_dicom(path, patterns):
                what = "is empty" if path.stat().st_size == 0 else "does not begin like DICOM"
                raise DataError(f"{path}: {what}, so a slice is missing; export the series again.")
            continue
        header = _header(path)
        kind = _no_slices(header)
        if kind is None and not header.get("SeriesInstanceUID"):
            raise DataError(
                f"{path}: names no series (SeriesInstanceUID), so it is cut off or damaged; "
                "export the series again."
            )
        if kind is None:
            images.append((path, header))
        else:
            beside[path.name] = kind
    return images, beside


def _header(path: Path) -> Dataset:
    try:
        with warnings.catch_warnings(action="ignore"):  # of what is checked below
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True)
            for _ in header.iterall():  # elements are parsed when they are looked at
                pass
    except Exception as error:  # whatever a parser makes of damaged bytes
        raise DataError(_unparsed(path, error)) from error
    return header


def _parsed(path: Path, header: Dataset) -> list[DicomFrame]:
    try:
        return list(_frames(path, header))
    except DataError:
        raise
    except Exception as error:  # tags of other kinds than the standard has them
        raise DataError(_unparsed(path, error)) from error


def _no_slices(header: Dataset) -> str | None:
    """The name of the storage class of an object that holds no slices."""
    meta = getattr(header, "file_meta", Dataset())
    uid = UID(str(header.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""))
    name = uid.name.removesuffix(" Storage")
    if "Image" not in name and any(word in uid.name for word in NO_SLICES):
        return name
    return None


def _frames(path: Path, header: Dataset) -> Iterator[DicomFrame]:
    """The frames of one file.

    Raises:
        DataError: a tag is missing or is no number
    """
    if header.get("ModalityLUTSequence"):
        raise DataError(
            f"{path}: its values pass through a table (Modality LUT) and have no scanner unit; "
            "export the series without it."
        )
    if header.get("SamplesPerPixel", 1) != 1 or header.get("PhotometricInterpretation") == COLOURS:
        raise DataError(f"{path}: expected grey values, got colour; this is no volume.")
    enhanced = header.get("PerFrameFunctionalGroupsSequence")
    count = _count(path, header)
    if count > 1 and not enhanced:
        raise DataError(
            f"{path}: {count} frames without a position each (multi-frame of an old kind, such as "
            "a cine or a dose); convert it to NIfTI first."
        )
    if "MOSAIC" in _words(header.get("ImageType")):
        for index, tile in enumerate(tiles_of(path, header)):
            frame = _frame(path, index, header, [header], tile.position)
            yield replace(frame, size=tile.size, corner=tile.corner)
        return
    if not enhanced:
        yield _frame(path, 0, header, [header], header.get("ImagePositionPatient"))
        return
    if len(enhanced) != count:
        raise DataError(
            f"{path}: announces {count} frames and describes {len(enhanced)}; it is damaged. "
            "Export the series again."
        )
    shared = header.get("SharedFunctionalGroupsSequence") or [Dataset()]
    for index, own in enumerate(enhanced):
        places = [*_inside(own), *_inside(shared[0]), header]
        yield _frame(path, index, header, places, _first(places, "ImagePositionPatient"))


def _inside(groups: Dataset) -> list[Dataset]:
    """The items of functional groups that say where a frame lies and what its values mean."""
    names = ("PlanePosition", "PlaneOrientation", "PixelMeasures", "PixelValueTransformation")
    found = (groups.get(f"{name}Sequence") for name in names)
    return [items[0] for items in found if items]


def _first(places: list[Dataset], keyword: str) -> Any:
    found = (place.get(keyword) for place in places)
    return next((value for value in found if value not in (None, "")), None)


def _frame(
    path: Path, index: int, header: Dataset, places: list[Dataset], position: Any
) -> DicomFrame:
    def numbers(value: Any, count: int, keyword: str, remedy: str) -> tuple[float, ...]:
        try:
            found = tuple(float(v) for v in ([] if value in (None, "") else value))
        except (TypeError, ValueError) as error:
            raise DataError(f"{path}: {keyword} is no number ({_short(error)}).") from error
        if not found:
            raise DataError(f"{path}: expected {keyword}, it is missing; {remedy}.")
        if len(found) != count or not all(map(math.isfinite, found)):
            raise DataError(
                f"{path}: expected {count} numbers as {keyword}, got {value}; {remedy}."
            )
        return found

    def number(keyword: str) -> float | None:
        value = _first(places, keyword)
        return None if value is None else numbers([value], 1, keyword, "export it again")[0]

    anew = "convert the series to NIfTI with a tool that knows where it lies"
    spacing = _first(places, "PixelSpacing")
    if spacing is None and header.get("ImagerPixelSpacing"):
        raise DataError(
            f"{path}: expected PixelSpacing, it has ImagerPixelSpacing alone, which is measured "
            f"on the detector and not in the patient; {anew}."
        )
    thickness = number("SliceThickness")
    return DicomFrame(
        path,
        index,
        str(header.get("SOPInstanceUID", "")),
        numbers(position, 3, "ImagePositionPatient", anew),
        max(map(_decimals, position)),
        numbers(_first(places, "ImageOrientationPatient"), 6, "ImageOrientationPatient", anew),
        numbers(spacing, 2, "PixelSpacing", anew),
        (_whole(path, header, "Rows"), _whole(path, header, "Columns")),
        thickness if thickness is None or thickness > 0 else None,
        number("RescaleSlope"),
        number("RescaleIntercept"),
        {
            "PhotometricInterpretation": header.get("PhotometricInterpretation", ""),
            "BitsAllocated": header.get("BitsAllocated"),
            "PixelRepresentation": header.get("PixelRepresentation"),
            "Modality": header.get("Modality", ""),
        },
    )


def _count(path: Path, header: Dataset) -> int:
    value = header.get("NumberOfFrames")
    return 1 if value in (None, "") else _whole(path, header, "NumberOfFrames")


def _whole(path: Path, header: Dataset, keyword: str) -> int:
    value = header.get(keyword)
    try:
        found = int(value)
    except (TypeError, ValueError):
        found = 0
    if found < 1:
        raise DataError(
            f"{path}: expected {keyword} of at least 1, got {value}; the file is damaged or is no "
            "image. Export the series again."
        )
    return found


def _decimals(value: Any) -> int:
    """Digits behind the point of a decimal string; many where it has an exponent."""
    text = str(getattr(value, "original_string", value)).strip().lower()
    return len(text.partition(".")[2])


def _words(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else [str(word) for word in value or ()]


def _unparsed(path: Path, error: Exception) -> str:
    return f"{path}: is damaged and cannot be parsed ({_short(error)}); export the series again."


def _short(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return (lines[-1] if lines else type(error).__name__)[:200]
