"""Tables and sentences about an evaluation, for reports, the terminal and Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from volumediff.evaluation.confounding import ORIGINS, Confounding
from volumediff.evaluation.healthy import healthy_rates
from volumediff.evaluation.leakage import said
from volumediff.evaluation.localization import REFERENCES, WAYS, Key, MethodResult
from volumediff.evaluation.localization_metrics import (
    LESION_SIZE_METRICS,
    LOCALIZATION_METRICS,
    WAITING_METRICS,
)
from volumediff.evaluation.measure import Measured
from volumediff.evaluation.table_line import Line, paired, plain
from volumediff.metrics.bootstrap import MIN_PATIENTS, Interval
from volumediff.metrics.definition import MetricDefinition

__all__ = [
    "CaseRow",
    "GapRow",
    "case_table",
    "confounded_lines",
    "counted",
    "coverage",
    "false_alarms",
    "gap_table",
    "group_table",
    "measure_table",
    "seen_lines",
    "size_table",
    "verdicts",
    "without_seen",
]

WAY_NAMES = {"by_iou": "IoU", "by_recall": "recall"}
NAN = float("nan")


def _references(results: Sequence[MethodResult]) -> list[str]:
    """The references that are among the methods."""
    return [name for name in REFERENCES if any(name in r.differences for r in results)]


def _line(
    results: Sequence[MethodResult],
    heading: str,
    metric: MetricDefinition,
    key: Key,
    cell: Callable[[MethodResult], Interval],
) -> Line:
    to_others = [{o: found.get(key) for o, found in r.differences.items()} for r in results]
    shown = {name: [found.get(name) for found in to_others] for name in _references(results)}
    return Line(
        heading,
        metric,
        [cell(r) for r in results],
        {name: found for name, found in shown.items() if any(found)},
        paired([r.method for r in results], to_others),
    )


def measure_table(results: Sequence[MethodResult]) -> list[Line]:
    """A row per measure that some method has; the mean over groups is in `group_table`."""
    lines = []
    for name, metric in LOCALIZATION_METRICS.items():
        if name == "voxel_ap_by_group":
            continue
        line = _line(results, metric.title, metric, (name,), lambda r, m=name: r.measures[m])
        if name == "volume_auroc":
            lines += _auroc_lines(results, line)
        elif any(np.isfinite(c.value) for c in line.cells):
            lines.append(line)
    waits = [r.turnaround for r in results]
    if any(w is not None for w in waits):
        for name, metric in WAITING_METRICS.items():
            cells = [plain(NAN if w is None else getattr(w, name)) for w in waits]
            lines.append(Line(metric.title, metric, cells))
    return lines


def _auroc_lines(results: Sequence[MethodResult], line: Line) -> list[Line]:
    """The volume AUROC, marked where it is confounded, and that within one origin."""
    if not any(np.isfinite(c.value) for c in line.cells):
        return []
    most = next(iter(results[0].confounding), None)
    if most is None or not most.confounded:
        return [line]
    # A confounded metric is shown, and never marked as the best: it has no pairs.
    marked = Line(f"{line.heading}, CONFOUNDED", line.metric, line.cells, line.differences)
    within = [plain(next(iter(r.confounding)).within) for r in results]
    if not any(np.isfinite(c.value) for c in within):
        return [marked]
    return [marked, Line(f"  within one {most.attribute}", line.metric, within)]


def confounded_lines(results: Sequence[MethodResult]) -> list[str]:
    """What the volume AUROC may be worth, one sentence; none without sick and healthy volumes."""
    if not np.isfinite(results[0].measures["volume_auroc"].value):
        return []
    found = results[0].confounding
    if not found:
        return [
            "No case has a site, scanner or data set (columns "
            f"{', '.join(sorted(ORIGINS)[:4])} ...): whether the volume AUROC tells scanners "
            "instead of disease is not known."
        ]
    return [_confounded(c) for c in found if c.confounded]


def _confounded(c: Confounding) -> str:
    shared = "no sick volume shares it with a healthy one"
    if c.pairs > 0:
        shared = f"{c.pairs:.0%} of the pairs of a sick and a healthy volume share it"
    return (
        f"The volume AUROC is confounded with {c.attribute}: {c.attribute} alone reaches "
        f"{c.alone:.2f}, and {shared}."
    )


def group_table(results: Sequence[MethodResult]) -> list[Line]:
    """Voxel AP: the mean over groups, then a row per group."""
    if not results[0].groups:
        return []
    name, metric = "voxel_ap_by_group", LOCALIZATION_METRICS["voxel_ap_by_group"]
    lines = [_line(results, "mean over groups", metric, (name,), lambda r: r.measures[name])]
    metric = LOCALIZATION_METRICS["voxel_ap"]
    for group in results[0].groups:
        key = ("voxel_ap", group)
        line = _line(results, group, metric, key, lambda r, g=group: r.groups[g]["voxel_ap"])
        if any(np.isfinite(c.value) for c in line.cells):
            lines.append(line)
    return lines


def size_table(results: Sequence[MethodResult]) -> list[Line]:
    """Share of the lesions of each size that were found, in both ways.

    Methods without a mask have no metric.
    """
    counts = {s.name: s.stratum for r in results for s in r.sizes}
    lines = []
    for name in sorted(counts, key=lambda name: counts[name].low_ml):
        for way in WAYS:

            def cell(r: MethodResult, name: str = name, way: str = way) -> Interval:
                return next((getattr(s, way) for s in r.sizes if s.name == name), plain(NAN))

            heading = f"{name} ({counts[name].lesions}), {WAY_NAMES[way]}"
            metric = LESION_SIZE_METRICS[way]
            lines.append(_line(results, heading, metric, (way, name), cell))
    return lines


@dataclass(frozen=True)
class CaseRow:
    """One volume of one method, for samples that are too small for intervals.

    Arguments:
        case, method: whose
        ap: voxel AP; nan without a lesion
        found: lesions found by IoU and by recall, of how many, in words; empty without a mask
        false_positives, excess_ml: nan without a mask
        score: of the volume
    """

    case: str
    method: str
    ap: float
    found: str
    false_positives: float
    excess_ml: float
    score: float


def case_table(results: Sequence[MethodResult]) -> list[CaseRow]:
    """Every volume, where the patients with or without lesions are too few for intervals."""
    cases = results[0].cases
    sick = {c.patient for c in cases if c.abnormal}
    if len(sick) >= MIN_PATIENTS or not cases:
        return []
    pairs = [(c, r.method) for i, _ in enumerate(cases) for r in results for c in [r.cases[i]]]
    return [_case_row(c, method) for c, method in pairs]


def _case_row(c: Measured, method: str) -> CaseRow:
    found, wrong, excess = "", NAN, NAN
    if c.lesions is not None:
        n = len(c.lesions.volumes_ml)
        found = f"{sum(c.lesions.by_iou)}, {sum(c.lesions.by_recall)} of {n}"
        wrong, excess = float(c.lesions.false_positives), c.lesions.excess_ml
    return CaseRow(c.case, method, c.ap, found, wrong, excess, c.score)


@dataclass(frozen=True)
class GapRow:
    """How much worse a method is for one subgroup than for another.

    Arguments:
        method: whose
        metric: what differs
        worst: subgroup with the worst value
        worst_value: its value
        gap: distance between the best and the worst subgroup
        chance: gap that 95 % of random subgroups of the same sizes do not exceed; nan if unknown
    """

    method: str
    metric: MetricDefinition
    worst: str
    worst_value: float
    gap: Interval
    chance: float


def gap_table(results: Sequence[MethodResult]) -> list[GapRow]:
    """A row per metric and method with values of several subgroups."""
    return [
        GapRow(
            r.method,
            LOCALIZATION_METRICS[name],
            found.worst,
            found.worst_value,
            found.gap,
            found.chance,
        )
        for name in dict.fromkeys(name for r in results for name in r.gaps)
        for r in results
        if (found := r.gaps.get(name)) is not None
    ]


def coverage(results: Sequence[MethodResult]) -> str:
    """What the metrics stand on, in one paragraph."""
    lines = [counted(results)]
    if known := false_alarms(results):
        lines.append(f"False alarms: {'; '.join(known)}.")
    return " ".join([*lines, *seen_lines(results)])


def counted(results: Sequence[MethodResult]) -> str:
    """How many volumes, patients and lesions the metrics stand on."""
    cases = results[0].cases
    volumes, patients = len(cases), len({c.patient for c in cases})
    sick = [c for c in cases if c.abnormal]
    counts = (
        f"{volumes} {'volume' if volumes == 1 else 'volumes'} of {patients} "
        f"{'patient' if patients == 1 else 'patients'}, {len(sick)} with lesions."
    )
    if len({c.patient for c in sick}) >= MIN_PATIENTS:
        return f"{counts} Intervals are 95 % over patients (bootstrap)."
    return (
        f"{counts} Fewer than {MIN_PATIENTS} patients have lesions: no interval is given, the "
        "cases are listed."
    )


def false_alarms(results: Sequence[MethodResult]) -> list[str]:
    """What each method marks in healthy volumes, as far as that is known."""
    rates = [(r.method, healthy_rates(r.cases, r.facts)) for r in results]
    return [f"{name}: {found.sentence}" for name, found in rates if found is not None]


def seen_lines(results: Sequence[MethodResult]) -> list[str]:
    """Which volumes the models have seen before."""
    lines = said([r.leakage for r in results])
    if any(r.leakage.leaks for r in results) and not without_seen(results):
        lines.append("No volume is left without them.")
    return lines


def without_seen(results: Sequence[MethodResult]) -> list[MethodResult]:
    """The results without the volumes that some model has seen; none if that is the same."""
    return [r.without_seen for r in results if r.without_seen is not None]


def verdicts(results: Sequence[MethodResult]) -> list[str]:
    """The first method against the best of the others by voxel AP, overall and per group."""
    if len(results) < 2:
        return []
    main, others = results[0], results[1:]
    overall = [r.measures["voxel_ap_by_group"].value for r in results]
    where = "mean over groups" if main.groups else ""
    lines = [_verdict(where, main, others, overall, ("voxel_ap_by_group",))]
    for group in main.groups:
        values = [r.groups[group]["voxel_ap"].value for r in results]
        lines.append(_verdict(group, main, others, values, ("voxel_ap", group)))
    return [line for line in lines if line]


def _verdict(
    where: str,
    main: MethodResult,
    others: Sequence[MethodResult],
    values: Sequence[float],
    key: Key,
) -> str:
    mine, rest = values[0], np.nan_to_num(np.asarray(values[1:]), nan=-1.0)
    if not np.isfinite(mine) or rest.max() < 0:
        return ""
    best, theirs = others[int(rest.argmax())].method, float(rest.max())
    prefix = f"{where}: " if where else ""
    if f"{theirs:.3f}" == f"{mine:.3f}":
        return f"{prefix}{main.method} and {best} are equal, {mine:.3f}."
    difference = main.differences.get(best, {}).get(key)
    if difference is not None and difference.low <= 0 <= difference.high:
        return (
            f"{prefix}{main.method} {mine:.3f} and the best other, {best} {theirs:.3f}, cannot be "
            f"told apart{_interval(difference)}."
        )
    if theirs > mine:
        return (
            f"{prefix}{best} is better than {main.method}, {theirs:.3f} against {mine:.3f}"
            f"{_interval(difference)}."
        )
    factor = f", {mine / theirs:.2f} times" if theirs > 0 else ""
    return (
        f"{prefix}{main.method} {mine:.3f}, best other {best} {theirs:.3f}{factor}"
        f"{_interval(difference)}."
    )


def _interval(difference: Interval | None) -> str:
    """The interval of a difference, where it is known."""
    if difference is None or not np.isfinite(difference.low):
        return ""
    low, high = difference.low, difference.high
    return f" (95 % interval of the difference: {low:+.3f} to {high:+.3f})"
