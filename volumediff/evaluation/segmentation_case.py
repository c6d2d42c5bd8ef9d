"""One segmentation against one truth: all metrics of a volume, label by label.

Everything is counted on the file's own grid over the whole volume, without the voxels that the
truth leaves out. Where a truth has several readers, overlap and surfaces are those against what
most of them say, and probabilities are compared with every reader: they are calibrated where they
give the readers' share. What needs a file that is not there, such as probabilities of another
program, is left out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8

from volumediff.data.volume import Volume, check_grids, read
from volumediff.errors import DataError
from volumediff.evaluation.truths import LabelMaps, Truth
from volumediff.metrics import calibration_error, detection
from volumediff.metrics.coherence import Shape, shape_of
from volumediff.metrics.label_agreement import AbsentLabels, label_agreement
from volumediff.metrics.panoptic import Instances, instances
from volumediff.metrics.readers import overlaps, reader_agreement
from volumediff.outputs.case_files import CaseFiles
from volumediff.outputs.segmentation_files import (
    ENTROPY,
    files_beside,
    probabilities_of,
    samples_of,
)

__all__ = ["SegmentationRules", "SegmentedCase", "measure_segmentation"]


@dataclass(frozen=True)
class SegmentationRules:
    """How segmentations are compared; recorded beside the results.

    Arguments:
        labels: values that are compared; None takes those that the methods say that they know,
            else all values of truths and label maps
        tolerance_mm: of NSD; None is the longest side of a voxel of each volume
        absent: what counts where a label is not there
    """

    labels: tuple[int, ...] | None = None
    tolerance_mm: float | None = None
    absent: AbsentLabels = field(default_factory=AbsentLabels)

    def __post_init__(self) -> None:
        if self.tolerance_mm is not None and not self.tolerance_mm > 0:
            raise ValueError(f"tolerance_mm: expected more than 0, got {self.tolerance_mm}.")
        if self.labels is not None and not all(0 < v < 256 for v in self.labels):
            raise ValueError(f"labels: expected values from 1 to 255, got {self.labels}.")


@dataclass(frozen=True, eq=False)
class SegmentedCase:
    """Metrics of one volume.

    Arguments:
        case, patient, group: which volume, of whom, and in which subgroup
        tolerance_mm: of its NSD
        agreement: label -> figures of `metrics.label_agreement`
        objects: label -> lesions and candidates
        reliability: label -> that of its probability; 0 is the background; empty without
        errors: of the entropy, with the wrong voxels as the abnormal ones; None without
        readers: label -> figures of `metrics.readers`; empty without several readers
        readers_mean: the same with the IoU averaged over the labels
        shapes: label -> shapes of the samples and of the masks of the truth; empty without samples
        samples: how many label maps were drawn
        cost: seconds, network_calls and peak_gb, as far as known
    """

    case: str
    patient: str
    group: str
    tolerance_mm: float
    agreement: Mapping[int, Mapping[str, float]]
    objects: Mapping[int, Instances]
    reliability: Mapping[int, calibration_error.Reliability] = field(default_factory=dict)
    errors: detection.Histogram | None = None
    readers: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    readers_mean: Mapping[str, float] = field(default_factory=dict)
    shapes: Mapping[int, tuple[Shape, Shape]] = field(default_factory=dict)
    samples: int = 0
    cost: Mapping[str, float] = field(default_factory=dict)


def measure_segmentation(
    path: Path,
    truth: Truth,
    facts: Mapping[str, Any],
    *,
    labels: Sequence[int],
    rules: SegmentationRules,
    by: str | None = None,
    cost: Mapping[str, float] | None = None,
) -> SegmentedCase:
    """Metrics of one label map.

    Arguments:
        path: the label map; probabilities, samples and entropy lie beside it
        truth: of the case
        facts: content of the JSON beside it
        labels: values that are compared
        rules: tolerance, and what counts where a label is not there
        by: attribute that names the subgroup
        cost: of the case, from the ledger

    Raises:
        DataError: a file lies on another grid, or is not what its name says
    """
    files = files_beside(path)
    volume = read(path, kind="label")
    there = truth.label_maps(volume)
    spacing_mm = volume.spacing_mm
    # a value that is compared is not left out, whatever localization does with it
    ignored = there.ignored & ~np.isin(there.consensus, labels)
    found = _without(volume.array[0], ignored)
    wanted = _without(there.consensus, ignored)
    tolerance = rules.tolerance_mm or max(spacing_mm)
    drawn = _samples(files, volume, ignored)
    calls = {"network_calls": float(facts["network_calls"])} if "network_calls" in facts else {}
    readers, mean, shapes = _several(drawn, found, there, wanted, labels, spacing_mm)
    return SegmentedCase(
        case=truth.case,
        patient=truth.patient_in(facts),
        group=str(truth.attributes.get(by, "")) if by else "",
        tolerance_mm=tolerance,
        agreement={
            v: label_agreement(
                found == v,
                wanted == v,
                spacing_mm=spacing_mm,
                tolerance_mm=tolerance,
                rules=rules.absent,
            )
            for v in labels
        },
        objects={v: instances(found == v, wanted == v, spacing_mm=spacing_mm) for v in labels},
        **_uncertain(files, volume, found, there, wanted, ignored, labels),
        readers=readers,
        readers_mean=mean,
        shapes=shapes,
        samples=0 if drawn is None else len(drawn),
        cost={**calls, **(cost or {})},
    )


def _without(labels: np.ndarray, ignored: Bool[np.ndarray, "d h w"]) -> UInt8[np.ndarray, "d h w"]:
    return np.where(ignored, 0, labels).astype(np.uint8)


def _samples(
    files: CaseFiles, like: Volume, ignored: Bool[np.ndarray, "d h w"]
) -> UInt8[np.ndarray, "n d h w"] | None:
    maps = []
    for path in samples_of(files):
        volume = read(path, kind="label")
        check_grids(like, volume)
        maps.append(_without(volume.array[0], ignored))
    return np.stack(maps) if maps else None


def _several(
    drawn: UInt8[np.ndarray, "n d h w"] | None,
    found: UInt8[np.ndarray, "d h w"],
    there: LabelMaps,
    wanted: UInt8[np.ndarray, "d h w"],
    labels: Sequence[int],
    spacing_mm: tuple[float, float, float],
) -> tuple[dict, dict, dict]:
    """Samples against readers, and their shapes; a method without samples has one, its map."""
    masks = wanted[None] if there.readers is None else there.readers
    shapes = {}
    if drawn is not None:
        for v in labels:
            two = [[shape_of(m == v, spacing_mm=spacing_mm) for m in s] for s in (drawn, masks)]
            shapes[v] = tuple(sum(part, Shape()) for part in two)
    if there.readers is None or len(there.readers) < 2:
        return {}, {}, shapes
    samples = found[None] if drawn is None else drawn
    parts = {v: overlaps(samples, there.readers, label=v) for v in labels}
    return (
        {v: reader_agreement([part]) for v, part in parts.items()},
        reader_agreement([*parts.values()]),
        shapes,
    )


def _uncertain(
    files: CaseFiles,
    like: Volume,
    found: UInt8[np.ndarray, "d h w"],
    there: LabelMaps,
    wanted: UInt8[np.ndarray, "d h w"],
    ignored: Bool[np.ndarray, "d h w"],
    labels: Sequence[int],
) -> dict[str, Any]:
    """Reliability of the probabilities, and the wrong voxels by entropy."""
    counted = ~ignored
    probabilities: dict[int, Float[np.ndarray, "d h w"]] = {}
    for v, path in probabilities_of(files).items():
        probabilities[v] = _image(path, like)
    masks = wanted[None] if there.readers is None else there.readers
    reliability = {}
    for v, p in probabilities.items():
        if v and v not in labels:
            continue
        try:
            parts = [
                calibration_error.reliability_of(p[counted], (m == v)[counted]) for m in masks
            ]
        except ValueError as error:
            raise DataError(f"{files.folder}: {files.stem}, label {v}: {error}") from None
        total = calibration_error.total(parts)
        assert total is not None, "there is a truth"
        reliability[v] = total
    path = files.path(ENTROPY)
    entropy = _image(path, like) if path.is_file() else _entropy(probabilities)
    if entropy is None:
        return {"reliability": reliability}
    errors = detection.histogram(
        torch.from_numpy(np.ascontiguousarray(entropy, dtype=np.float32)),
        torch.from_numpy(found != wanted),
        foreground=torch.from_numpy(counted),
    )
    return {"reliability": reliability, "errors": detection.coarse([errors])[0]}


def _image(path: Path, like: Volume) -> Float[np.ndarray, "d h w"]:
    volume = read(path)
    check_grids(like, volume)
    return volume.array[0]


def _entropy(
    probabilities: Mapping[int, Float[np.ndarray, "d h w"]],
) -> Float[np.ndarray, "d h w"] | None:
    """In nats, of the probabilities with the background as the rest; None without any."""
    from scipy.special import xlogy  # heavy import

    labels = [p.clip(0, 1) for v, p in probabilities.items() if v]
    if not labels:
        return None
    whole = np.stack([(1 - np.sum(labels, axis=0)).clip(0, 1), *labels])
    whole /= whole.sum(axis=0)
    return -xlogy(whole, whole).sum(axis=0)
