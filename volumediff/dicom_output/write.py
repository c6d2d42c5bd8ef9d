"""The DICOM files of a case.

<case>_desc-anomaly_seg.dcm      findings, a segment each; not there where nothing was found
<case>_desc-anomaly_rtstruct.dcm contours of the findings, for planning systems
<case>_desc-anomaly_map.dcm      the anomaly map in float32
<case>_desc-anomaly_report.dcm   volume, mean score, probability and place of every finding
<case>_seg.dcm                   labels of a segmentation, a segment each
<case>_rtstruct.dcm              contours of the labels
<case>_probseg.dcm               their probabilities
<case>_dseg_report.dcm           volume and mean probability of every label
"""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from pydicom.dataset import Dataset

from volumediff.data.grid import Grid
from volumediff.data.label_names import names_in
from volumediff.dicom_output.identity import Maker
from volumediff.dicom_output.parametric_map import parametric_map
from volumediff.dicom_output.report import measurement_report
from volumediff.dicom_output.segmentation import binary_segmentation, probability_segmentation
from volumediff.dicom_output.segments import (
    segments_of_findings,
    segments_of_labels,
    whole_volume,
)
from volumediff.dicom_output.series import SourceSeries, read_source_series
from volumediff.dicom_output.structure_set import structure_set
from volumediff.extras import optional
from volumediff.findings.schema import CaseFindings
from volumediff.findings.written import Written
from volumediff.outputs.case_files import CaseFiles
from volumediff.outputs.export import MAP
from volumediff.storage.atomic import write_bytes

__all__ = ["write_findings_dicom", "write_labels_dicom"]

FINDINGS_SEG, FINDINGS_REPORT = "desc-anomaly_seg", "desc-anomaly_report"
FINDINGS_STRUCTURES, LABELS_STRUCTURES = "desc-anomaly_rtstruct", "rtstruct"
LABELS_SEG, LABELS_PROBABILITY, LABELS_REPORT = "seg", "probseg", "dseg_report"


def write_findings_dicom(
    files: CaseFiles, folder: Path | None, written: Written, found: CaseFindings
) -> list[Path]:
    """Writes findings and map of a localization as DICOM objects.

    Arguments:
        files: where to
        folder: with the series that was localized; None for an image in memory
        written: the result on the grid of the series
        found: its findings

    Raises:
        UsageError: highdicom is not installed
        DataError: not a series, or one that no object can refer to
    """
    series, maker = _source(folder, written.native, written.facts)
    segments = segments_of_findings(written, found)
    objects: dict[str, Dataset] = {MAP: parametric_map(series, written.map, maker)}
    segmentation = None
    if segments:
        segmentation = objects[FINDINGS_SEG] = binary_segmentation(series, segments, maker)
        objects[FINDINGS_STRUCTURES] = structure_set(series, segments, maker)
    objects[FINDINGS_REPORT] = measurement_report(
        series, segments, segmentation, found.statement, maker, whole=whole_volume(found)
    )
    return _saved(files, objects)


def write_labels_dicom(
    files: CaseFiles,
    folder: Path | None,
    labels: UInt8[np.ndarray, "d h w"],
    probabilities: Mapping[int, Float[np.ndarray, "d h w"]],
    *,
    grid: Grid,
    facts: Mapping[str, Any],
) -> list[Path]:
    """Writes labels and probabilities of a segmentation as DICOM objects.

    Arguments:
        files: where to
        folder: with the series that was segmented; None for an image in memory
        labels: along R, A, S
        probabilities: of each label
        grid: of the series, as it was read
        facts: what is recorded beside the labels

    Raises:
        UsageError: highdicom is not installed
        DataError: not a series, or one that no object can refer to
    """
    series, maker = _source(folder, grid, facts)
    voxel_mm3 = abs(float(np.linalg.det(grid.affine[:3, :3])))
    segments = segments_of_labels(
        labels, probabilities, names=names_in(facts), voxel_mm3=voxel_mm3
    )
    segmentation = binary_segmentation(series, segments, maker)
    statement = f"Labels of the method {maker.method}."
    objects = {
        LABELS_SEG: segmentation,
        LABELS_STRUCTURES: structure_set(series, segments, maker),
        LABELS_PROBABILITY: probability_segmentation(series, segments, maker),
        LABELS_REPORT: measurement_report(series, segments, segmentation, statement, maker),
    }
    return _saved(files, objects)


def _source(
    folder: Path | None, grid: Grid, facts: Mapping[str, Any]
) -> tuple[SourceSeries, Maker]:
    optional("highdicom", purpose="DICOM output")
    series = read_source_series(folder, grid, facts.get("read_policy", {}))
    known = ("fingerprint", "segmenter", "weights_sha256", "seed", "inputs")
    settings = repr([facts.get(name) for name in known])
    return series, Maker(series.uid, str(facts["method"]), settings)


def _saved(files: CaseFiles, objects: Mapping[str, Dataset]) -> list[Path]:
    paths = []
    for name, made in objects.items():
        content = BytesIO()
        made.save_as(content, enforce_file_format=True)
        paths.append(files.path(name, ".dcm"))
        write_bytes(paths[-1], content.getvalue())
    return paths
