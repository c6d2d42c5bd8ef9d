"""Segments -> DICOM RT Structure Set: closed contours on the slices of the series.

Planning systems read contours, where viewers read a Segmentation. A contour runs half-way between
the centres of the voxels inside and those outside, so that every centre of a segment lies within
its contours and no other one does. A hole is cut in by a keyhole: the contour goes in along a line
and comes back along it, as PS3.3, C.8.8.6.3 has it.

The libraries for DICOM objects that are maintained write none, so that this is pydicom alone.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Float
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage

from volumediff.data.grid import native_order
from volumediff.dicom_output.identity import LONGEST, NOTICE, Maker, settled
from volumediff.dicom_output.segments import Segment
from volumediff.dicom_output.series import MAY_BE_EMPTY, SourceSeries

__all__ = ["structure_set"]

SERIES = 9005  # number in the study
STUDY_COMPONENT = "1.2.840.10008.3.1.2.3.1"  # what a reference to a study says it refers to
SHORT = 16  # characters of a string of the kind SH


def structure_set(series: SourceSeries, segments: Sequence[Segment], maker: Maker) -> FileDataset:
    """Regions of interest with the names and colours of the segments; an empty one has no contour.

    Arguments:
        series: that the contours lie on
        segments: at least one
        maker: of the result
    """
    stack = np.stack([series.frames(segment.voxels) for segment in segments])
    made = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.SOPClassUID = made.file_meta.MediaStorageSOPClassUID = RTStructureSetStorage
    made.SOPInstanceUID = maker.uid("structures", stack)
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID
    _place_in_study(made, series, maker, stack)
    made.StructureSetLabel = "volumediff"[:SHORT]
    made.StructureSetDescription = NOTICE
    now = datetime.now()
    made.StructureSetDate, made.StructureSetTime = f"{now:%Y%m%d}", f"{now:%H%M%S}"
    made.ApprovalStatus = "UNAPPROVED"
    made.ReferencedFrameOfReferenceSequence = [_referenced(series)]
    made.StructureSetROISequence, made.ROIContourSequence = [], []
    made.RTROIObservationsSequence = []
    for number, segment in enumerate(segments, start=1):
        region, contours, observation = Dataset(), Dataset(), Dataset()
        region.ROINumber, region.ROIName = number, segment.name[:LONGEST]
        region.ReferencedFrameOfReferenceUID = series.images[0].FrameOfReferenceUID
        region.ROIGenerationAlgorithm = "AUTOMATIC"
        contours.ReferencedROINumber = number
        contours.ROIDisplayColor = list(segment.colour)
        contours.ContourSequence = list(_contours(series, segment.voxels))
        observation.ObservationNumber = observation.ReferencedROINumber = number
        observation.RTROIInterpretedType = observation.ROIInterpreter = ""
        made.StructureSetROISequence.append(region)
        made.ROIContourSequence.append(contours)
        made.RTROIObservationsSequence.append(observation)
    return settled(made, maker, "Structures")


def _place_in_study(
    made: Dataset, series: SourceSeries, maker: Maker, stack: Bool[np.ndarray, "s f r c"]
) -> None:
    """Patient and study of the series, and a series of its own."""
    source = series.images[0]
    for keyword in ("StudyInstanceUID", *MAY_BE_EMPTY):
        setattr(made, keyword, source.get(keyword, ""))
    made.FrameOfReferenceUID = source.FrameOfReferenceUID
    made.PositionReferenceIndicator = source.get("PositionReferenceIndicator", "")
    made.Modality, made.SeriesNumber, made.InstanceNumber = "RTSTRUCT", SERIES, 1
    made.SeriesInstanceUID = maker.uid("structures series", stack)
    made.OperatorsName = ""
    made.Manufacturer, made.ManufacturerModelName = "volumediff", maker.method[:LONGEST]
    made.SoftwareVersions = maker.version


def _referenced(series: SourceSeries) -> Dataset:
    """The space of the contours, and all images that it is the space of."""
    space, study, images = Dataset(), Dataset(), Dataset()
    first = series.images[0]
    images.SeriesInstanceUID = first.SeriesInstanceUID
    images.ContourImageSequence = [_reference(image) for image in series.images]
    study.ReferencedSOPClassUID = STUDY_COMPONENT
    study.ReferencedSOPInstanceUID = first.StudyInstanceUID
    study.RTReferencedSeriesSequence = [images]
    space.FrameOfReferenceUID = first.FrameOfReferenceUID
    space.RTReferencedStudySequence = [study]
    return space


def _reference(image: Dataset, frame: int | None = None) -> Dataset:
    """An image, or one of its frames counted from 1."""
    made = Dataset()
    made.ReferencedSOPClassUID = image.SOPClassUID
    made.ReferencedSOPInstanceUID = image.SOPInstanceUID
    if frame is not None:
        made.ReferencedFrameNumber = frame
    return made


def _contours(series: SourceSeries, voxels: Bool[np.ndarray, "d h w"]) -> Iterator[Dataset]:
    """Contours of a segment, slice after slice along the stack."""
    stack = native_order(voxels[None], series.grid)[0]  # columns, rows, slices
    frame_of = {place: frame for frame, place in enumerate(series.order)}
    to_patient = np.diag([-1.0, -1, 1]) @ series.grid.affine[:3]  # LPS, as DICOM has it
    for place in np.flatnonzero(stack.any(axis=(0, 1))).tolist():
        frame = frame_of[place]
        single = len(series.images) == 1 and len(series.order) > 1
        image = series.images[0] if single else series.images[frame]
        for outline in _outlines(stack[:, :, place]):
            points = np.column_stack(
                [outline, np.full(len(outline), place), np.ones(len(outline))]
            )
            contour = Dataset()
            contour.ContourImageSequence = [_reference(image, frame + 1 if single else None)]
            contour.ContourGeometricType = "CLOSED_PLANAR"
            contour.NumberOfContourPoints = len(points)
            contour.ContourData = [f"{value:.4f}" for value in (points @ to_patient.T).ravel()]
            yield contour


def _outlines(plane: Bool[np.ndarray, "c r"]) -> Iterator[Float[np.ndarray, "n 2"]]:
    """Closed contours around the voxels of a slice as (column, row); the last meets the first."""
    from contourpy import contour_generator

    padded = np.pad(plane.astype(np.float64), 1)  # contours at the border are closed, too
    made = contour_generator(z=padded.T, fill_type="OuterOffset").filled(0.5, 2.0)
    for points, offsets in zip(*made, strict=True):
        loops = [points[a : b - 1] - 1 for a, b in pairwise(offsets)]
        outline = loops[0]
        for hole in loops[1:]:
            outline = _with_hole(outline, hole)
        yield outline


def _with_hole(
    outline: Float[np.ndarray, "n 2"], hole: Float[np.ndarray, "m 2"]
) -> Float[np.ndarray, "k 2"]:
    """The outline with a hole, which it reaches by the shortest line through no voxel's centre:
    whether a centre on the line is inside would be up to who reads it."""
    apart = np.linalg.norm(outline[:, None] - hole[None], axis=-1)
    for pair in apart.ravel().argsort(kind="stable").tolist():
        i, j = divmod(pair, len(hole))
        if not _meets_centre(outline[i], hole[j]):
            break
    around = np.roll(hole, -j, axis=0)
    return np.concatenate([outline[: i + 1], around, around[:1], outline[i:]])


def _meets_centre(a: Float[np.ndarray, "2"], b: Float[np.ndarray, "2"]) -> bool:
    """Whether a line has a point of two whole coordinates."""
    axis = int(np.abs(b - a).argmax())  # along which it is longer: no division by zero
    low, high = sorted((a[axis], b[axis]))
    whole = np.arange(np.ceil(low), np.floor(high) + 1)
    other = a[1 - axis] + (whole - a[axis]) * (b[1 - axis] - a[1 - axis]) / (b[axis] - a[axis])
    return bool((np.abs(other - np.rint(other)) < 1e-6).any())
