"""The metrics of an evaluation, each a number from a sample of volumes, for table and bootstrap.

Figures of lesions cannot be gained by marking more, see `metrics.lesions`. `voxel_ap`,
`voxel_auroc` and Dice are means over the volumes that have a lesion, `voxel_ap_pooled` and
`best_dice` come from all voxels together; the threshold of `best_dice` has seen the truth, those
of the other two Dice have not. Neither have the method's own mask, which lesions and boxes are
counted in, and the probabilities, which validation has fitted.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from volumediff.evaluation.cost_metrics import COST_METRICS
from volumediff.evaluation.measure import Measured, Restored
from volumediff.metrics import boxes, calibration_error, detection, normative
from volumediff.metrics.lesions import (
    Lesions,
    excess_ml,
    false_positives,
    found_by_iou,
    found_by_recall,
    froc_score,
    lesion_f1,
    merged,
    split,
    volume_matched_false_positives,
)
from volumediff.metrics.worklist import delay, recall_at

__all__ = [
    "MEASURES",
    "Statistic",
    "boxes_in",
    "errors_in",
    "lesions_in",
    "patients_behind",
    "reliability_in",
    "restored_in",
]

# The IoU of the table; the JSON has all of `boxes.IOUS`.
IOU = boxes.IOUS.index(0.25)
# Share of the worklist that is read: the fifth with the highest scores.
BUDGET = 0.2
# Slices of a pseudo-3D model are axial unless it says otherwise: the axis w of RAS.
THROUGH = 2

Statistic = Callable[[Sequence[Measured]], float]


def _mean(values: Iterable[float]) -> float:
    finite = [v for v in values if np.isfinite(v)]
    return float(np.mean(finite)) if finite else float("nan")


def _sum(histograms: Sequence[detection.Histogram]) -> detection.Histogram:
    """Counts of all cases, which have common bins: `_result` has seen to that."""
    if not histograms:
        return detection.total([])
    return detection.Histogram(
        histograms[0].keys,
        np.sum([h.healthy for h in histograms], axis=0),
        np.sum([h.abnormal for h in histograms], axis=0),
    )


def _pooled(cases: Sequence[Measured]) -> detection.Histogram:
    return _sum([c.histogram for c in cases])


def lesions_in(cases: Sequence[Measured]) -> list[Lesions]:
    return [c.lesions for c in cases if c.lesions is not None]


def boxes_in(cases: Sequence[Measured]) -> list[boxes.Matches]:
    return [c.boxes for c in cases if c.boxes is not None]


def restored_in(cases: Sequence[Measured]) -> list[Restored]:
    return [c.restored for c in cases if c.restored is not None]


def errors_in(cases: Sequence[Measured]) -> detection.Histogram:
    return _sum([c.errors for c in cases if c.errors is not None])


def reliability_in(cases: Sequence[Measured]) -> calibration_error.Reliability | None:
    return calibration_error.total(c.reliability for c in cases if c.reliability is not None)


def _of_reliability(name: str) -> Statistic:
    def statistic(cases: Sequence[Measured]) -> float:
        found = reliability_in(cases)
        return float("nan") if found is None else getattr(found, name)

    return statistic


def _ahi(cases: Sequence[Measured]) -> float:
    """Healthy volumes of half of the patients are the reference, those of the others unseen."""
    pairs = [(c, c.restored) for c in cases if c.restored is not None]
    return normative.ahi(
        pathological=[r.before for c, r in pairs if c.abnormal],
        restored=[r.after for c, r in pairs if c.abnormal],
        unseen=[r.before for c, r in pairs if not c.abnormal and not c.reference],
        normal=[r.before for c, r in pairs if not c.abnormal and c.reference],
    )


def _cost(name: str) -> Statistic:
    return lambda cases: _mean(c.cost.get(name, np.nan) for c in cases)


def _by_group(cases: Sequence[Measured]) -> float:
    groups: dict[str, list[float]] = {}
    for c in cases:
        groups.setdefault(c.group, []).append(c.ap)
    return _mean(_mean(values) for values in groups.values())


MEASURES: dict[str, Statistic] = {
    "voxel_ap": lambda cs: _mean(c.ap for c in cs),
    "voxel_ap_by_group": _by_group,
    "voxel_ap_pooled": lambda cs: detection.average_precision(_pooled(cs)),
    "voxel_auroc": lambda cs: _mean(c.auroc for c in cs),
    "best_dice": lambda cs: detection.best_dice(_pooled(cs)).dice,
    "dice_validation": lambda cs: _mean(c.dice.get("validation", np.nan) for c in cs),
    "dice_healthy_fpr": lambda cs: _mean(c.dice.get("healthy_fpr", np.nan) for c in cs),
    "found_by_iou": lambda cs: found_by_iou(lesions_in(cs)),
    "found_by_recall": lambda cs: found_by_recall(lesions_in(cs)),
    "lesion_f1": lambda cs: lesion_f1(lesions_in(cs)),
    "merged": lambda cs: merged(lesions_in(cs)),
    "split": lambda cs: split(lesions_in(cs)),
    "false_positives": lambda cs: false_positives(lesions_in(cs)),
    "matched_false_positives": lambda cs: volume_matched_false_positives(lesions_in(cs)),
    "excess_ml": lambda cs: excess_ml(lesions_in(cs)),
    "associated": lambda cs: _mean(c.associated for c in cs),
    "froc": lambda cs: froc_score(lesions_in(cs)),
    "box_ap": lambda cs: boxes.average_precision(boxes_in(cs), at=IOU),
    "box_giou": lambda cs: _mean(g for m in boxes_in(cs) for g in m.nearest),
    "box_response": lambda cs: _mean(c.response.ratio for c in cs if c.response is not None),
    "box_energy": lambda cs: _mean(c.response.energy for c in cs if c.response is not None),
    "volume_auroc": lambda cs: detection.volume_auroc(
        [c.score for c in cs], [c.abnormal for c in cs]
    ),
    "worklist_recall": lambda cs: recall_at(
        [c.score for c in cs], [c.abnormal for c in cs], budget=BUDGET
    ),
    "worklist_delay": lambda cs: delay([c.score for c in cs], [c.abnormal for c in cs]),
    "rqi": lambda cs: _mean(r.rqi for r in restored_in(cs)),
    "ahi": _ahi,
    "caci": lambda cs: _mean(r.caci for r in restored_in(cs)),
    "normative": lambda cs: normative.combined(
        *(MEASURES[name](cs) for name in ("rqi", "ahi", "caci"))
    ),
    "ece": _of_reliability("ece"),
    "mce": _of_reliability("mce"),
    "brier": _of_reliability("brier"),
    "brier_skill": _of_reliability("skill"),
    "aurc": lambda cs: calibration_error.aurc(errors_in(cs)),
    "through_plane": lambda cs: _mean(c.through_plane[THROUGH] for c in cs),
    "through_plane_restored": lambda cs: _mean(r.through_plane[THROUGH] for r in restored_in(cs)),
    "network_calls": _cost("network_calls"),
    "seconds": _cost("seconds"),
    "peak_gb": _cost("peak_gb"),
    "prevalence": lambda cs: detection.prevalence(_pooled([c for c in cs if c.abnormal])),
}

# Metrics of all volumes, of sick and healthy ones, of healthy ones; the others are of sick ones.
OF_ALL = {
    *("false_positives", "excess_ml", "aurc", "through_plane", "through_plane_restored"),
    *COST_METRICS,
}
OF_BOTH = {"volume_auroc", "worklist_recall", "worklist_delay", "ahi", "normative"}
OF_HEALTHY = {"rqi"}


def patients_behind(name: str, cases: Sequence[Measured]) -> int:
    """How many patients a metric stands on: for lesions those who have one."""
    sick = {c.patient for c in cases if c.abnormal}
    healthy = {c.patient for c in cases if not c.abnormal}
    if name in OF_ALL:
        return len(sick | healthy)
    if name in OF_BOTH:
        return min(len(sick), len(healthy))
    return len(healthy if name in OF_HEALTHY else sick)
