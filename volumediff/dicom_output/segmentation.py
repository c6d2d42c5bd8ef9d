"""Segments -> DICOM Segmentation in the space of the series, frame for frame on its images."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.sr.codedict import codes

from volumediff.dicom_output.identity import NOTICE, Maker, settled
from volumediff.dicom_output.segments import Segment
from volumediff.dicom_output.series import SourceSeries

if TYPE_CHECKING:
    from highdicom.seg import Segmentation, SegmentDescription

__all__ = ["binary_segmentation", "probability_segmentation"]

BINARY_SERIES, PROBABILITY_SERIES = 9001, 9002  # numbers of the series in the study
STEPS = 255  # of a probability between 0 and 1


def binary_segmentation(
    series: SourceSeries, segments: Sequence[Segment], maker: Maker
) -> "Segmentation":
    """Voxels that are in or out of a segment.

    Arguments:
        series: that the voxels belong to
        segments: at least one
        maker: of the result
    """
    stack = np.stack([series.frames(s.voxels) for s in segments], axis=-1).astype(np.uint8)
    return _segmentation(series, stack, segments, maker, "segmentation", BINARY_SERIES, "BINARY")


def probability_segmentation(
    series: SourceSeries, segments: Sequence[Segment], maker: Maker
) -> "Segmentation":
    """Probabilities of labels, in steps of 1/255.

    Arguments:
        series: that the voxels belong to
        segments: at least one, with probabilities from 0 to 1
        maker: of the result
    """
    maps = [s.probability for s in segments if s.probability is not None]
    stack = np.stack([series.frames(p.clip(0, 1)) for p in maps], axis=-1).astype(np.float32)
    return _segmentation(
        series,
        stack,
        segments,
        maker,
        "probability",
        PROBABILITY_SERIES,
        "FRACTIONAL",
        fractional_type="PROBABILITY",
        max_fractional_value=STEPS,
    )


def _segmentation(
    series: SourceSeries,
    stack: np.ndarray,
    segments: Sequence[Segment],
    maker: Maker,
    name: str,
    number: int,
    kind: str,
    **more: Any,
) -> "Segmentation":
    """The object of a name and a series number, and of what highdicom asks for its kind."""
    from highdicom.seg import Segmentation

    made = Segmentation(
        series.images,
        stack,
        kind,
        _descriptions(segments, maker),
        series_instance_uid=maker.uid(f"{name} series", stack),
        series_number=number,
        sop_instance_uid=maker.uid(name, stack),
        instance_number=1,
        content_label=name.upper(),
        content_description=NOTICE,
        **more,
        **maker.equipment(),
    )
    return settled(made, maker, name.capitalize())


def _descriptions(segments: Sequence[Segment], maker: Maker) -> list["SegmentDescription"]:
    from highdicom.color import CIELabColor
    from highdicom.content import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentDescription

    algorithm = AlgorithmIdentificationSequence(
        name=f"volumediff {maker.method}"[:64],
        family=codes.DCM.ArtificialIntelligence,
        version=maker.version,
    )
    return [
        SegmentDescription(
            segment_number=number,
            segment_label=segment.name,
            segmented_property_category=segment.category,
            segmented_property_type=segment.kind,
            algorithm_type="AUTOMATIC",
            algorithm_identification=algorithm,
            tracking_uid=maker.uid(f"tracking {segment.name}"),
            tracking_id=segment.name,
            display_color=CIELabColor.from_rgb(*segment.colour),
        )
        for number, segment in enumerate(segments, start=1)
    ]
