"""What was measured in the segments -> structured report by TID 1500, which refers to them."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from volumediff.dicom_output.identity import NOTICE, Maker, settled
from volumediff.dicom_output.segments import Quantity, Segment
from volumediff.dicom_output.series import SourceSeries

if TYPE_CHECKING:
    from highdicom.seg import Segmentation
    from highdicom.sr import (
        Comprehensive3DSR,
        Measurement,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )

__all__ = ["measurement_report"]

SERIES = 9004  # number in the study
PROCEDURES = {
    "CT": codes.cid100.CTUnspecifiedBodyRegion,
    "PT": codes.cid100.PETUnspecifiedBodyRegion,
    "MR": codes.cid100.MRIUnspecifiedBodyRegion,
}
OTHER_PROCEDURE = Code("363679005", "SCT", "Imaging procedure")


def measurement_report(
    series: SourceSeries,
    segments: Sequence[Segment],
    segmentation: "Segmentation | None",
    statement: str,
    maker: Maker,
    *,
    whole: Sequence[Quantity] = (),
) -> "Comprehensive3DSR":
    """A group of measurements for each segment, and one for the whole volume.

    Arguments:
        series: that was given
        segments: as they are numbered in the segmentation
        segmentation: that the groups refer to; None where there is no segment
        statement: what was found, in a sentence
        maker: of the result
        whole: measured in all of the volume; there is a segment or some of these
    """
    import highdicom as hd

    observer = hd.sr.ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=hd.sr.DeviceObserverIdentifyingAttributes(
            uid=maker.uid("observer"),
            manufacturer_name="volumediff",
            model_name=maker.method,
            serial_number=maker.version,
        ),
    )
    groups = []
    if segmentation is not None:
        groups = [
            _group(series, segment, number, segmentation, maker)
            for number, segment in enumerate(segments, start=1)
        ]
    if whole:
        tracked = hd.sr.TrackingIdentifier(uid=maker.uid("tracking volume"), identifier="volume")
        groups.append(
            hd.sr.MeasurementsAndQualitativeEvaluations(
                tracking_identifier=tracked, measurements=_measurements(whole)
            )
        )
    content = hd.sr.MeasurementReport(
        observation_context=hd.sr.ObservationContext(observer_device_context=observer),
        procedure_reported=PROCEDURES.get(series.modality, OTHER_PROCEDURE),
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    content[0].ContentSequence.append(_comment(f"{NOTICE} {statement}"))
    evidence = [*series.images, *([] if segmentation is None else [segmentation])]
    made = hd.sr.Comprehensive3DSR(
        evidence=evidence,
        content=content[0],
        series_instance_uid=maker.uid("report series"),
        series_number=SERIES,
        sop_instance_uid=maker.uid("report"),
        instance_number=1,
        manufacturer="volumediff",
        is_complete=True,
    )
    return settled(made, maker, "Measurements")


def _group(
    series: SourceSeries,
    segment: Segment,
    number: int,
    segmentation: "Segmentation",
    maker: Maker,
) -> "VolumetricROIMeasurementsAndQualitativeEvaluations":
    import highdicom as hd

    group = hd.sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=hd.sr.TrackingIdentifier(
            uid=maker.uid(f"tracking {segment.name}"), identifier=segment.name
        ),
        referenced_segment=hd.sr.ReferencedSegment(
            sop_class_uid=segmentation.SOPClassUID,
            sop_instance_uid=segmentation.SOPInstanceUID,
            segment_number=number,
            source_series=hd.sr.SourceSeriesForSegmentation(series.uid),
        ),
        finding_category=segment.category,
        finding_type=segment.kind,
        algorithm_id=hd.sr.AlgorithmIdentification(
            name=f"volumediff {maker.method}", version=maker.version
        ),
        measurements=_measurements(segment.quantities),
    )
    if segment.place:
        group[0].ContentSequence.append(_comment(segment.place))
    return group


def _measurements(quantities: Sequence[Quantity]) -> list["Measurement"]:
    from highdicom.sr import Measurement

    return [
        Measurement(
            name=quantity.name,
            value=float(f"{quantity.value:.6g}"),
            unit=quantity.unit,
            derivation=codes.SCT.Mean if quantity.mean else None,
        )
        for quantity in quantities
    ]


def _comment(text: str) -> Dataset:
    from highdicom.sr import TextContentItem

    return TextContentItem(name=codes.DCM.Comment, value=text, relationship_type="CONTAINS")
