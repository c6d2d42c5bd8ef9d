"""Tables and sentences about an evaluation, for reports, the terminal and Markdown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from volumediff.evaluation.confounding import ORIGINS, Confounding
from volumediff.evaluation.figures import COSTS, LOWER_IS_BETTER, UNRANKED
from volumediff.evaluation.healthy import healthy_rates
from volumediff.evaluation.leakage import said
from volumediff.evaluation.localization import REFERENCES, WAYS, Key, MethodResult
from volumediff.evaluation.measure import Measured
from volumediff.evaluation.table_line import Line, plain
from volumediff.metrics.bootstrap import MIN_PATIENTS, Interval

__all__ = [
    "HEADINGS",
    "CaseRow",
    "case_table",
    "confounded_lines",
    "coverage",
    "gap_lines",
    "group_table",
    "measure_table",
    "references",
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
    "dice_validation": "Dice, validation threshold",
    "dice_healthy_fpr": "Dice, healthy-FPR threshold",
    "found_by_iou": "lesions found by IoU",
    "found_by_recall": "lesions found by recall",
    "lesion_f1": "lesion F1",
    "false_positives": "false positives",
    "matched_false_positives": "volume-matched false pos.",
    "excess_ml": "excess volume in ml",
    "merged": "merged lesions",
    "split": "split lesions",
    "associated": "associated changes marked",
    "froc": "FROC, mean at 1/8 to 8",
    "box_ap": "box AP at IoU 0.25",
    "volume_auroc": "volume AUROC",
    "worklist_recall": "recall at reading budget 20 %",
    "worklist_delay": "delay of positives, 1 random",
    "rqi": "RQI, healthy restored",
    "ahi": "AHI, restored is healthy",
    "caci": "CACI, changed in lesion only",
    "ece": "ECE of probabilities",
    "brier_skill": "Brier skill of probabilities",
    "aurc": "AURC by uncertainty",
    "through_plane": "through-plane ratio, 1 smooth",
    "network_calls": "network calls",
    "seconds": "seconds",
    "peak_gb": "peak GB of the card",
}
# Numbers per volume that are no shares: three decimals would say nothing.
COUNTS = {
    *("false_positives", "matched_false_positives", "excess_ml", "merged", "split"),
    *("network_calls", "seconds", "peak_gb"),
}
WAY_NAMES = {"by_iou": "IoU", "by_recall": "recall"}
NAN = float("nan")


def references(results: Sequence[MethodResult]) -> list[str]:
    """The references that are among the methods."""
    return [name for name in REFERENCES if any(name in r.differences for r in results)]


def _line(
    results: Sequence[MethodResult],
    heading: str,
    key: Key,
    cell: Callable[[MethodResult], Interval],
) -> Line:
    name = key[0]
    differences = {
        reference: [r.differences.get(reference, {}).get(key) for r in results]
        for reference in references(results)
        if name not in COSTS
    }
    return Line(
        heading,
        [cell(r) for r in results],
        differences,
        count=name in COUNTS,
        lowest=None if name in UNRANKED else name in LOWER_IS_BETTER,
    )


def measure_table(results: Sequence[MethodResult]) -> list[Line]:
    """A row per measure that some method has."""
    lines = []
    for name, heading in HEADINGS.items():
        if name == "voxel_ap_by_group" and not results[0].groups:
            continue
        line = _line(results, heading, (name,), lambda r, name=name: r.measures[name])
        if name == "volume_auroc":
            lines += _auroc_lines(results, line)
        elif any(np.isfinite(c.value) for c in line.cells):
            lines.append(line)
    waits = [r.turnaround for r in results]
    if any(w is not None for w in waits):
        for heading, name in (
            ("minutes sick volumes wait", "positive"),
            ("  in order of arrival", "positive_fifo"),
        ):
            cells = [plain(NAN if w is None else getattr(w, name)) for w in waits]
            lowest = True if name == "positive" else None
            lines.append(Line(heading, cells, count=True, lowest=lowest))
    return lines


def _auroc_lines(results: Sequence[MethodResult], line: Line) -> list[Line]:
    """The volume AUROC, marked where it is confounded, and that within one origin."""
    if not any(np.isfinite(c.value) for c in line.cells):
        return []
    most = next(iter(results[0].confounding), None)
    if most is None or not most.confounded:
        return [line]
    marked = Line(f"{line.heading}, CONFOUNDED", line.cells, line.differences, lowest=None)
    within = [plain(next(iter(r.confounding)).within) for r in results]
    if not any(np.isfinite(c.value) for c in within):
        return [marked]
    return [marked, Line(f"  within one {most.attribute}", within)]


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
    mean = _line(
        results, "mean", ("voxel_ap_by_group",), lambda r: r.measures["voxel_ap_by_group"]
    )
    lines = [mean] if results[0].groups else []
    for group in results[0].groups:
        key = ("voxel_ap", group)
        line = _line(results, group, key, lambda r, g=group: r.groups[g]["voxel_ap"])
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
            lines.append(_line(results, heading, (way, name), cell))
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


def coverage(results: Sequence[MethodResult]) -> str:
    """How many volumes, patients and lesions the metrics stand on, and who has seen them."""
    cases = results[0].cases
    volumes, patients = len(cases), len({c.patient for c in cases})
    sick = [c for c in cases if c.abnormal]
    counts = (
        f"{volumes} {'volume' if volumes == 1 else 'volumes'} of {patients} "
        f"{'patient' if patients == 1 else 'patients'}, {len(sick)} with lesions."
    )
    if len({c.patient for c in sick}) >= MIN_PATIENTS:
        counts += " Intervals are 95 % over patients (bootstrap)."
    else:
        counts += (
            f" Fewer than {MIN_PATIENTS} patients have lesions: no interval is given, the cases "
            "are listed."
        )
    rates = [(r.method, healthy_rates(r.cases, r.facts)) for r in results]
    known = [f"{name}: {found.sentence}" for name, found in rates if found is not None]
    lines = [f"False alarms: {'; '.join(known)}."] if known else []
    lines += said([r.leakage for r in results])
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
    if f"{theirs:.3f}" == f"{mine:.3f}":
        return f"{prefix}{main.method} and {best} are equal, {mine:.3f}."
    if theirs > mine:
        return f"{prefix}{best} is better than {main.method}, {theirs:.3f} against {mine:.3f}."
    factor = f", {mine / theirs:.2f} times" if theirs > 0 else ""
    return f"{prefix}{main.method} {mine:.3f}, best other {best} {theirs:.3f}{factor}."
