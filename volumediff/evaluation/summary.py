"""Tables and sentences about an evaluation, for reports, the terminal and Markdown."""

from collections.abc import Sequence

import numpy as np

from volumediff.evaluation.evaluate import MethodResult
from volumediff.evaluation.figures import LOWER_IS_BETTER
from volumediff.evaluation.leakage import said
from volumediff.metrics.bootstrap import Interval

__all__ = [
    "HEADINGS",
    "best_of",
    "coverage",
    "gap_lines",
    "group_table",
    "measure_table",
    "size_table",
    "verdicts",
    "without_seen",
]

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
    "froc": "FROC, mean at 1/8 to 8 false positives",
    "box_ap": "box AP at IoU 0.25",
    "volume_auroc": "volume AUROC",
    "rqi": "RQI, restoration of healthy volumes",
    "ahi": "AHI, pseudo-healthy is healthy",
    "caci": "CACI, changed in the lesion only",
    "ece": "ECE of probabilities",
    "brier_skill": "Brier skill of probabilities",
    "aurc": "AURC by uncertainty",
    "through_plane": "through-plane ratio, 1 without jumps",
    "network_calls": "network calls per volume",
    "seconds": "seconds per volume",
    "peak_gb": "peak GB of the card",
}
# Neither more nor less is better.
UNRANKED = {"through_plane"}

Rows = list[tuple[str, list[Interval]]]


def measure_table(results: Sequence[MethodResult]) -> tuple[Rows, list[float | None]]:
    """Heading and metrics per measure, methods in order; and the best metric of each row."""
    grouped = bool(results[0].groups)
    rows, best = [], []
    for name, heading in HEADINGS.items():
        cells = [r.measures[name] for r in results]
        if name == "voxel_ap_by_group" and not grouped:
            continue
        if any(np.isfinite(c.value) for c in cells):
            rows.append((heading, cells))
            lowest = name in LOWER_IS_BETTER
            best.append(None if name in UNRANKED else best_of(cells, lowest=lowest))
    return rows, best


def group_table(
    results: Sequence[MethodResult],
) -> tuple[list[str], Rows, list[float | None]]:
    """Voxel AP: the mean over groups and the groups, per method, and the best of each column."""
    groups = [
        g
        for g in results[0].groups
        if any(np.isfinite(r.groups[g]["voxel_ap"].value) for r in results)
    ]
    rows = [
        (
            r.method,
            [r.measures["voxel_ap_by_group"], *(r.groups[g]["voxel_ap"] for g in groups)],
        )
        for r in results
    ]
    columns = ["mean", *groups]
    best = [best_of([cells[i] for _, cells in rows]) for i in range(len(columns))]
    return columns, rows, best


def size_table(results: Sequence[MethodResult]) -> tuple[Rows, list[float | None]]:
    """Share of the lesions of each size that were found, methods in order; and the best of each.

    Methods without a mask have no metric.
    """
    counts = {s.name: s.stratum for r in results for s in r.sizes}
    order = sorted(counts, key=lambda name: counts[name].low_ml)
    unknown = Interval(float("nan"), float("nan"), float("nan"), 0.95, 0)
    rows = []
    for name in order:
        rates = [next((s.rate for s in r.sizes if s.name == name), unknown) for r in results]
        rows.append((f"lesions {name} ({counts[name].lesions})", rates))
    return rows, [best_of(cells) for _, cells in rows]


def gap_lines(results: Sequence[MethodResult]) -> list[str]:
    """How much worse a method is for the worst subgroup, and what chance alone would do."""
    lines = []
    for r in results:
        for name, found in r.gaps.items():
            text = (
                f"{r.method}, {HEADINGS[name]}: worst for {found.worst} "
                f"({found.worst_value:.3f}), gap {found.gap.value:.3f}"
            )
            if np.isfinite(found.gap.low):
                text += f" ({found.gap.low:.3f} to {found.gap.high:.3f})"
            if np.isfinite(found.chance):
                text += f"; by chance up to {found.chance:.3f}"
            lines.append(f"{text}.")
    return lines


def best_of(cells: Sequence[Interval], *, lowest: bool = False) -> float | None:
    """The best value, if there are two to compare."""
    values = [c.value for c in cells if np.isfinite(c.value)]
    if len(values) < 2:
        return None
    return min(values) if lowest else max(values)


def coverage(results: Sequence[MethodResult]) -> str:
    """How many volumes, patients and lesions the metrics stand on, and who has seen them."""
    cases = results[0].cases
    counts = (
        f"{len(cases)} volumes of {len({c.patient for c in cases})} patients, "
        f"{sum(c.abnormal for c in cases)} with lesions; 95 % intervals over patients (bootstrap)."
    )
    lines = said([r.leakage for r in results])
    if any(r.leakage.leaks for r in results) and not without_seen(results):
        lines.append("No volume is left without them.")
    return " ".join([counts, *lines])


def without_seen(results: Sequence[MethodResult]) -> list[MethodResult]:
    """The results without the volumes that some model has seen; none if that is the same."""
    return [r.without_seen for r in results if r.without_seen is not None]


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
