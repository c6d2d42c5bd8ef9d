"""An evaluation as plain values for JSON: everything except the histograms."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from volumediff.evaluation.figures import boxes_in
from volumediff.evaluation.healthy import healthy_rates
from volumediff.evaluation.localization import Curves, MethodResult
from volumediff.evaluation.measure import Measured
from volumediff.evaluation.segmentation import SegmentationEvaluation
from volumediff.evaluation.segmentation_case import SegmentedCase
from volumediff.evaluation.translation import TranslationEvaluation
from volumediff.metrics import boxes, calibration_error
from volumediff.metrics.bootstrap import Interval
from volumediff.metrics.lesions import SIZES_ML
from volumediff.metrics.panoptic import panoptic
from volumediff.metrics.subgroups import subgroup_auroc

__all__ = ["segmentation_details", "segmentation_values", "to_json", "translation_values"]

# Points of a curve in the JSON.
POINTS = 200


def to_json(results: Sequence[MethodResult]) -> dict[str, Any]:
    """Everything but the histograms, as plain values."""

    def intervals(measures: Mapping[str, Interval]) -> dict[str, Any]:
        return {name: asdict(value) for name, value in measures.items()}

    return {
        r.method: {
            "folder": str(r.folder),
            "measures": intervals(r.measures),
            "groups": {g: intervals(m) for g, m in r.groups.items()},
            "gaps": {m: asdict(value) for m, value in r.gaps.items()},
            "volume_auroc_by_group": subgroup_auroc(
                [c.score for c in r.cases],
                [c.abnormal for c in r.cases],
                [c.group for c in r.cases],
            ),
            "lesion_sizes": [
                {
                    **asdict(s.stratum),
                    "name": s.name,
                    "rate_by_iou": asdict(s.by_iou),
                    "rate_by_recall": asdict(s.by_recall),
                }
                for s in r.sizes
            ],
            "differences": {
                reference: {" ".join(key): asdict(value) for key, value in found.items()}
                for reference, found in r.differences.items()
            },
            "confounding": [{**asdict(c), "confounded": c.confounded} for c in r.confounding],
            "turnaround": r.turnaround and asdict(r.turnaround),
            "lesion_size_edges_ml": list(SIZES_ML),
            "boxes": {
                f"{iou:g}": {
                    "ap": boxes.average_precision(boxes_in(r.cases), at=k),
                    "precision": boxes.precision(boxes_in(r.cases), at=k),
                    "recall": boxes.recall(boxes_in(r.cases), at=k),
                }
                for k, iou in enumerate(boxes.IOUS)
                if boxes_in(r.cases)
            },
            "curves": _curves(r.curves),
            "left_out": list(r.left_out),
            "healthy": (found := healthy_rates(r.cases, r.facts)) and asdict(found),
            "seen": asdict(r.leakage),
            "without_seen": r.without_seen and to_json([r.without_seen])[r.method],
            "cases": [_case(c) for c in r.cases],
            "fingerprint": r.facts.get("fingerprint"),
            "supervision": r.facts.get("supervision"),
            "scope": r.facts.get("scope"),
            "weights_sha256": r.facts.get("weights_sha256"),
        }
        for r in results
    }


def segmentation_values(
    results: Sequence[SegmentationEvaluation],
) -> dict[str, dict[str, dict[str, float]]]:
    """method -> label value, or `mean` -> metric -> value."""
    return {
        r.method: {
            label: {metric: i.value for metric, i in figures.items()}
            for label, figures in r.labels.items()
        }
        for r in results
    }


def segmentation_details(results: Sequence[SegmentationEvaluation]) -> dict[str, Any]:
    """Intervals, differences, rules and cases of every method, as plain values."""

    def intervals(table: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
        return {
            label: {metric: asdict(i) for metric, i in row.items()} for label, row in table.items()
        }

    return {
        r.method: {
            "folder": str(r.folder),
            "labels": list(r.values),
            "names": {str(v): name for v, name in r.names.items()},
            "intervals": intervals(r.labels),
            "differences": {name: intervals(found) for name, found in r.differences.items()},
            "panoptic_by_size": {
                label: [
                    {"low_ml": low, "high_ml": high, "pq": c.pq, "rq": c.rq, "sq": c.sq}
                    | {"tp": c.tp, "fp": c.fp, "fn": c.fn}
                    for (low, high), c in sizes.items()
                ]
                for label, sizes in r.sizes.items()
            },
            "groups": {g: asdict(i) for g, i in r.groups.items()},
            "rules": {"tolerance_mm": r.rules.tolerance_mm, **asdict(r.rules.absent)},
            "reliability": _reliability(r),
            "left_out": list(r.left_out),
            "seen": asdict(r.leakage),
            "without_seen": r.without_seen
            and segmentation_values([r.without_seen])[r.without_seen.method],
            "cases": [_segmented(c) for c in r.cases],
            "weights_sha256": r.facts.get("weights_sha256"),
        }
        for r in results
    }


def _reliability(result: SegmentationEvaluation) -> dict[str, Any]:
    """label -> bins of its probability, the background as 0."""
    values = sorted({v for c in result.cases for v in c.reliability})
    tables = {
        v: calibration_error.total(c.reliability[v] for c in result.cases if v in c.reliability)
        for v in values
    }
    return {str(v): _bins(t) for v, t in tables.items() if t is not None}


def _segmented(c: SegmentedCase) -> dict[str, Any]:
    return {
        "case": c.case,
        "patient": c.patient,
        "group": c.group,
        "tolerance_mm": c.tolerance_mm,
        "samples": c.samples,
        "labels": {
            str(v): {**row, **c.readers.get(v, {}), "pq": panoptic(c.objects[v]).pq}
            for v, row in c.agreement.items()
        },
        "readers": dict(c.readers_mean),
        "cost": dict(c.cost),
    }


def _case(c: Measured) -> dict[str, Any]:
    found = None
    if c.lesions is not None:
        ways = {"by_iou": list(c.lesions.by_iou), "by_recall": list(c.lesions.by_recall)}
        found = {**asdict(c.lesions), **ways, "excess_ml": c.lesions.excess_ml}
        del found["false_scores"]  # there may be thousands; the FROC curve has them
    return {
        "case": c.case,
        "patient": c.patient,
        "group": c.group,
        "score": c.score,
        "abnormal": c.abnormal,
        "voxel_ap": c.ap,
        "voxel_auroc": c.auroc,
        "origin": dict(c.origin),
        "dice": dict(c.dice),
        "associated": c.associated,
        "unseen": c.unseen,
        "lesions": found,
        "box_response": None if c.response is None else asdict(c.response),
        "ece": None if c.reliability is None else c.reliability.ece,
        "aurc": None if c.errors is None else calibration_error.aurc(c.errors),
        "rqi": None if c.restored is None else c.restored.rqi,
        "caci": None if c.restored is None else c.restored.caci,
        "through_plane": list(c.through_plane),
        "cost": dict(c.cost),
    }


def _curves(curves: Curves) -> dict[str, Any]:
    """Curves with at most `POINTS` points, the ends among them."""

    def thinned(array: np.ndarray) -> list[float]:
        if len(array) <= POINTS:
            return array.tolist()
        return array[np.linspace(0, len(array) - 1, POINTS).round().astype(int)].tolist()

    found: dict[str, Any] = {}
    for name in ("froc", "risk_coverage"):
        curve = getattr(curves, name)
        found[name] = curve and {axis: thinned(values) for axis, values in vars(curve).items()}
    found["reliability"] = curves.reliability and _bins(curves.reliability)
    return found


def _bins(table: calibration_error.Reliability) -> dict[str, list[int] | list[float]]:
    return {
        "voxels": table.voxels.tolist(),
        "predicted": (table.predicted / np.maximum(table.voxels, 1)).tolist(),
        "lesions": (table.lesions / np.maximum(table.voxels, 1)).tolist(),
    }


def translation_values(results: Sequence[TranslationEvaluation]) -> dict[str, Any]:
    """method -> values with their intervals by channel, what is about all channels under `case`,
    and the values of every case."""

    def plain(table: Mapping[str, Mapping[str, Interval]]) -> dict[str, Any]:
        return {
            channel or "case": {name: asdict(value) for name, value in metrics.items()}
            for channel, metrics in table.items()
        }

    def one(r: TranslationEvaluation) -> dict[str, Any]:
        return {
            "folder": str(r.folder),
            "channels": plain(r.channels),
            "groups": {group: asdict(value) for group, value in r.groups.items()},
            "differences": {other: plain(found) for other, found in r.differences.items()},
            "cases": [asdict(case) for case in r.cases],
            "without_seen": None if r.without_seen is None else one(r.without_seen),
        }

    return {r.method: one(r) for r in results}
