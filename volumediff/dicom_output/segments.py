"""Findings of an anomaly map, or labels of a segmentation, as segments of DICOM."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code

from volumediff.colours import label_colour
from volumediff.data.label_names import label_name
from volumediff.dicom_output.identity import LONGEST
from volumediff.findings.components import parts_of, voxel_of, voxels_of
from volumediff.findings.schema import CaseFindings
from volumediff.findings.written import Written

__all__ = [
    "SCORE",
    "Quantity",
    "Segment",
    "segments_of_findings",
    "segments_of_labels",
    "whole_volume",
]

SCHEME = "99VOLUMEDIFF"  # of codes that no standard has
VOLUME_SCORE = Code("volume-score", SCHEME, "Anomaly score of the volume")
SCORE = Code("anomaly-score", SCHEME, "Anomaly score")
PROBABILITY = Code("probability", SCHEME, "Probability of the finding")
LABEL_PROBABILITY = Code("label-probability", SCHEME, "Probability of the label")


@dataclass(frozen=True)
class Quantity:
    """A measured value.

    Arguments:
        name: what it is
        value: in its unit
        unit: of UCUM
        mean: whether it is a mean over the voxels
    """

    name: Code
    value: float
    unit: Code
    mean: bool = False


@dataclass(frozen=True, eq=False)
class Segment:
    """A part of the volume.

    Arguments:
        name: shown by viewers
        voxels: along R, A, S
        probability: of a label, on the same voxels; None for a finding
        category, kind: what it is, by codes
        colour: as on the pages, red, green and blue from 0 to 255
        quantities: measured in it
        place: where it lies, in words
    """

    name: str
    voxels: Bool[np.ndarray, "d h w"]
    probability: Float[np.ndarray, "d h w"] | None
    category: Code
    kind: Code
    colour: tuple[int, int, int]
    quantities: tuple[Quantity, ...]
    place: str


def segments_of_findings(written: Written, found: CaseFindings) -> list[Segment]:
    """A segment for each finding of a localization, in the order of the list of findings."""
    parts, segments = parts_of(written), []
    for number, finding in enumerate(found.findings, start=1):
        mask = np.zeros(written.map.shape, bool)
        mask[tuple(voxels_of(finding, voxel_of(written, finding), parts).T)] = True
        quantities = [
            _volume(1000 * finding.volume_ml),
            Quantity(SCORE, finding.mean_score, codes.UCUM.NoUnits, mean=True),
        ]
        if finding.probability is not None:
            probability = Quantity(PROBABILITY, finding.probability, codes.UCUM.NoUnits, mean=True)
            quantities.append(probability)
        x, y, z = finding.place.centre_mm
        where = f"centre {-x:.1f}, {-y:.1f}, {z:.1f} mm along left, posterior and superior"
        segments.append(
            Segment(
                f"finding {finding.id}",
                mask,
                None,
                codes.SCT.MorphologicallyAbnormalStructure,
                codes.SCT.Lesion,
                _colour(number),
                tuple(quantities),
                f"{finding.place.region}; {where}",
            )
        )
    return segments


def segments_of_labels(
    labels: UInt8[np.ndarray, "d h w"],
    probabilities: Mapping[int, Float[np.ndarray, "d h w"]],
    *,
    names: Mapping[int, str],
    voxel_mm3: float,
) -> list[Segment]:
    """A segment for each label of a segmentation, whether it has voxels or not.

    Which code of a standard a name stands for is known to no run: it is one of this program.

    Arguments:
        labels: along R, A, S
        probabilities: of each label, on the same voxels
        names: of labels, where they are known
        voxel_mm3: volume of a voxel
    """
    segments = []
    for value, probability in probabilities.items():
        mask = labels == value
        quantities = [_volume(float(mask.sum()) * voxel_mm3)]
        if mask.any():
            mean = float(probability[mask].mean())
            quantities.append(Quantity(LABEL_PROBABILITY, mean, codes.UCUM.NoUnits, mean=True))
        segments.append(
            Segment(
                label_name(value, names)[:LONGEST],
                mask,
                probability,
                codes.SCT.SpatialAndRelationalConcept,
                Code(f"label-{value}", SCHEME, label_name(value, names)[:LONGEST]),
                _colour(value),
                tuple(quantities),
                "",
            )
        )
    return segments


def whole_volume(found: CaseFindings) -> list[Quantity]:
    """What is measured in all of a localized volume: the volume of all findings, and its score."""
    quantities = [_volume(1000 * math.fsum(finding.volume_ml for finding in found.findings))]
    if found.volume_score is not None:
        quantities.append(Quantity(VOLUME_SCORE, found.volume_score, codes.UCUM.NoUnits))
    return quantities


def _volume(mm3: float) -> Quantity:
    return Quantity(codes.SCT.Volume, mm3, codes.UCUM.CubicMillimeter)


def _colour(value: int) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(label_colour(value)[1:])
    return red, green, blue
