"""What is said about an evaluation, in reports, on the terminal and in Markdown alike."""

from collections.abc import Sequence

import numpy as np

from volumediff.inference.evaluation import MethodResult
from volumediff.metrics.bootstrap import Interval

__all__ = ["HEADINGS", "best_of", "coverage", "group_table", "measure_table", "verdicts"]

HEADINGS = {
    "voxel_ap_by_group": "voxel AP, mean over groups",
    "voxel_ap": "voxel AP",
    "voxel_ap_pooled": "voxel AP, pooled",
    "voxel_auroc": "voxel AUROC",
    "best_dice": "best Dice (oracle)",
    "dice_validation": "Dice at validation threshold",
    "dice_healthy_fpr": "Dice at healthy-FPR threshold",
    "lesion_detection": "lesions detected",
    "lesion_f1": "lesion F1",
    "false_positives": "false positives per volume",
    "volume_auroc": "volume AUROC",
}
LOWER_IS_BETTER = {"false_positives"}

Rows = list[tuple[str, list[Interval]]]


def measure_table(results: Sequence[MethodResult]) -> tuple[Rows, list[float | None]]:
    """Heading and figures per measure, methods in order; and the best figure of each row."""
    grouped = bool(results[0].groups)
    rows, best = [], []
    for name, heading in HEADINGS.items():
        cells = [r.measures[name] for r in results]
        if name == "voxel_ap_by_group" and not grouped:
            continue
        if any(np.isfinite(c.value) for c in cells):
            rows.append((heading, cells))
            best.append(best_of(cells, lowest=name in LOWER_IS_BETTER))
    return rows, best


def group_table(
    results: Sequence[MethodResult],
) -> tuple[list[str], Rows, list[float | None]]:
    """Voxel AP: groups and their mean, figures per method, and the best figure of each column."""
    groups = [
        g
        for g in results[0].groups
        if any(np.isfinite(r.groups[g]["voxel_ap"].value) for r in results)
    ]
    rows = [
        (
            r.method,
            [*(r.groups[g]["voxel_ap"] for g in groups), r.measures["voxel_ap_by_group"]],
        )
        for r in results
    ]
    columns = [*groups, "mean"]
    best = [best_of([cells[i] for _, cells in rows]) for i in range(len(columns))]
    return columns, rows, best


def best_of(cells: Sequence[Interval], *, lowest: bool = False) -> float | None:
    """The best value, if there are two to compare."""
    values = [c.value for c in cells if np.isfinite(c.value)]
    if len(values) < 2:
        return None
    return min(values) if lowest else max(values)


def coverage(results: Sequence[MethodResult]) -> str:
    """How many volumes, patients and lesions the figures stand on."""
    cases = results[0].cases
    return (
        f"{len(cases)} volumes of {len({c.patient for c in cases})} patients, "
        f"{sum(c.abnormal for c in cases)} with lesions; 95 % intervals over patients (bootstrap)."
    )


def verdicts(results: Sequence[MethodResult]) -> list[str]:
    """The first method against the best of the others by voxel AP, overall and per group."""
    if len(results) < 2:
        return []
    main, others = results[0], results[1:]
    overall = [r.measures["voxel_ap_by_group"].value for r in (main, *others)]
    lines = [_verdict("mean over groups" if main.groups else "", main, others, overall)]
    for group in main.groups:
        values = [r.groups[group]["voxel_ap"].value for r in (main, *others)]
        lines.append(_verdict(group, main, others, values))
    return [line for line in lines if line]


def _verdict(
    where: str, main: MethodResult, others: Sequence[MethodResult], values: Sequence[float]
) -> str:
    mine, rest = values[0], np.nan_to_num(np.asarray(values[1:]), nan=-1.0)
    if not np.isfinite(mine) or rest.max() < 0:
        return ""
    best, theirs = others[int(rest.argmax())].method, float(rest.max())
    prefix = f"{where}: " if where else ""
    if theirs >= mine:
        return f"{prefix}{best} is better than {main.method}, {theirs:.3f} against {mine:.3f}."
    factor = f", {mine / theirs:.2f} times" if theirs > 0 else ""
    return f"{prefix}{main.method} {mine:.3f}, best other {best} {theirs:.3f}{factor}."
