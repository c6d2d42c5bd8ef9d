"""Evaluation of maps against truth masks, per method, with bootstrap intervals over patients.

The metrics of a volume are those of `measure`, those of a sample are in `figures`. Every metric of
a method has its paired difference to every other method: on the same patients, resample by
resample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.distributed.launch import shared_out
from volumediff.evaluation.confounding import Confounding, confounding
from volumediff.evaluation.cost_metrics import COST_METRICS
from volumediff.evaluation.figures import (
    MEASURES,
    Statistic,
    errors_in,
    lesions_in,
    patients_behind,
    reliability_in,
    restored_in,
)
from volumediff.evaluation.leakage import Leakage, leakages
from volumediff.evaluation.localization_metrics import LOCALIZATION_METRICS
from volumediff.evaluation.measure import Measured, measure
from volumediff.evaluation.output_folders import costs_in, method_name, sidecar
from volumediff.evaluation.truths import Truth
from volumediff.metrics import calibration_error, detection
from volumediff.metrics.bootstrap import (
    MIN_PATIENTS,
    Interval,
    Replicates,
    difference,
    resampled,
)
from volumediff.metrics.definition import Better
from volumediff.metrics.lesions import Froc, Lesions, Stratum, froc, stratified
from volumediff.metrics.subgroups import Gap, gap
from volumediff.metrics.worklist import Turnaround, turnaround

__all__ = ["REFERENCES", "WAYS", "Curves", "Key", "MethodResult", "Size", "evaluate_maps"]

# Methods that know nothing of a lesion: all others must be better than these.
REFERENCES = ("atlas", "intensity")
WAYS = ("by_iou", "by_recall")
Key = tuple[str, ...]
"""(measure,), (measure, group) or (way, size): a number of a result."""
Draws = dict[Key, Replicates]

# More of a lesion than this outside the foreground is said: the crop may be too tight. There are
# no healthy voxels out there to rank it against, so that metrics mean little when it is most.
UNSEEN = 0.05
# Only these are worth a table per subgroup: the others need many volumes.
GROUP_MEASURES = ("voxel_ap", "voxel_auroc", "dice_healthy_fpr", "found_by_recall")
GAP_MEASURES = (*GROUP_MEASURES, "false_positives")


@dataclass(frozen=True)
class Size:
    """Lesions of one size range.

    Arguments:
        stratum: how many there are and were found
        by_iou, by_recall: share that was found in each way, with its interval over patients
    """

    stratum: Stratum
    by_iou: Interval
    by_recall: Interval

    @property
    def name(self) -> str:
        """The range in words."""
        return _range(self.stratum)


def _range(stratum: Stratum) -> str:
    low, high = stratum.low_ml, stratum.high_ml
    if low == 0:
        return f"below {high:g} ml"
    return f"{low:g} to {high:g} ml" if np.isfinite(high) else f"from {low:g} ml"


@dataclass(frozen=True, eq=False)
class Curves:
    """What is drawn; None where there is nothing to draw it from."""

    froc: Froc | None = None
    reliability: calibration_error.Reliability | None = None
    risk_coverage: calibration_error.RiskCoverage | None = None


@dataclass(frozen=True, eq=False)
class MethodResult:
    """Metrics of one folder of maps.

    Arguments:
        method: name of the method
        folder: of the maps
        measures: by name, see `MEASURES`
        groups: subgroup -> measures
        cases: the volumes
        facts: from the sidecar of the first volume
        gaps: measure -> difference between subgroups
        sizes: detection of the lesions of each size
        curves: FROC, reliability and risk-coverage of all volumes, as far as there are any
        left_out: what could not be said, and why
        leakage: volumes that the model has seen before
        differences: other method -> key -> this method minus the other, paired over patients
        confounding: attributes that tell sick from healthy volumes, the most telling first
        turnaround: waits on a list in the order of the scores and of arrival
        without_seen: the metrics without the volumes that some model has seen, where there are any
    """

    method: str
    folder: Path
    measures: Mapping[str, Interval]
    groups: Mapping[str, Mapping[str, Interval]]
    cases: Sequence[Measured]
    facts: Mapping[str, Any]
    gaps: Mapping[str, Gap] = field(default_factory=dict)
    sizes: Sequence[Size] = ()
    curves: Curves = field(default_factory=Curves)
    left_out: Sequence[str] = ()
    leakage: Leakage = field(default_factory=Leakage)
    differences: Mapping[str, Mapping[Key, Interval]] = field(default_factory=dict)
    confounding: Sequence[Confounding] = ()
    turnaround: Turnaround | None = None
    without_seen: "MethodResult | None" = None


def evaluate_maps(
    maps: Mapping[Path, Mapping[str, Path]],
    known: Mapping[str, Truth],
    *,
    by: str | None = None,
    seed: int = 0,
    replicates: int = 1000,
    allow_seen: bool = False,
    same_names: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[MethodResult]:
    """Compares folders of maps, each of one method, with the truth, on the cases they share.

    Arguments:
        maps: folder -> case -> anomaly map
        known: truth of the shared cases
        by: attribute of the cases (a column of participants.tsv) that makes subgroups
        seed: of the bootstrap
        replicates: of the bootstrap
        allow_seen: go on although a model has seen some of the volumes before; results then hold
            the metrics without them, too
        same_names: equal names of patients are those of other people; equal files still count
        report: receives a line for everything that is left out

    Raises:
        UsageError: two folders of one method
        DataError: image and mask on different grids, volumes that a model has seen, or a volume
            that is there twice
    """
    sidecars = {
        folder: {case: sidecar(found[case]) for case in known} for folder, found in maps.items()
    }
    seen, tainted = leakages(sidecars, known, allow_seen=allow_seen, same_names=same_names)
    results: dict[str, MethodResult] = {}
    draws: dict[str, Draws] = {}
    clean_draws: dict[str, Draws] = {}
    for folder, found in maps.items():
        first = next(iter(sidecars[folder].values()))
        name = method_name(folder, first, results)
        costs = costs_in(folder)
        measured = shared_out(
            lambda item: measure(
                item[1],
                known[item[0]].beside(item[2]),
                item[2],
                by=by,
                cost=item[3],
            ),
            [
                (case, found[case], facts, costs.get(case))
                for case, facts in sidecars[folder].items()
            ],
        )
        cases = dict(zip(sidecars[folder], measured, strict=True))
        for c in cases.values():
            if c.unseen > UNSEEN:
                report(
                    f"{folder}: {c.unseen:.0%} of the lesion of {c.case} lies outside of the map"
                )
        result, draws[name] = _result(
            name, folder, [*cases.values()], first, seen[folder], seed=seed, replicates=replicates
        )
        clean = [c for case, c in cases.items() if case not in tainted]
        if tainted and clean:
            own = replace(seen[folder], leaks=())
            rest, clean_draws[name] = _result(
                name, folder, clean, first, own, seed=seed, replicates=replicates
            )
            result = replace(result, without_seen=rest)
        if result.left_out:
            report(f"{folder}: left out: {'; '.join(result.left_out)}")
        results[name] = result
    return [
        replace(
            r,
            differences=_differences(r.method, draws),
            without_seen=r.without_seen
            and replace(r.without_seen, differences=_differences(r.method, clean_draws)),
        )
        for r in results.values()
    ]


def _differences(method: str, draws: Mapping[str, Draws]) -> dict[str, Mapping[Key, Interval]]:
    """This method minus each of the others; what something costs has no difference."""
    mine = draws[method]
    return {
        name: {
            key: difference(mine[key], theirs).interval()
            for key, theirs in found.items()
            if key in mine and key[0] not in COST_METRICS
        }
        for name, found in draws.items()
        if name != method
    }


def _result(
    name: str,
    folder: Path,
    cases: Sequence[Measured],
    facts: Mapping[str, Any],
    seen: Leakage,
    *,
    seed: int,
    replicates: int,
) -> tuple[MethodResult, Draws]:
    cases = _with_reference(cases)
    # the same draws for every method, and common bins, so that differences are the methods'
    slim = _on_common_bins(cases)
    patients = [c.patient for c in slim]

    def draw(statistic: Statistic, chosen: Sequence[Measured], behind: int) -> Replicates:
        whose = [c.patient for c in chosen]
        count = replicates if behind >= MIN_PATIENTS else 0
        return resampled(chosen, statistic, patients=whose, seed=seed, replicates=count)

    groups = sorted({c.group for c in slim} - {""})
    gaps = {
        m: gap(
            slim,
            MEASURES[m],
            groups=[c.group for c in slim],
            patients=patients,
            better="lower" if LOCALIZATION_METRICS[m].better is Better.LOWER else "higher",
            seed=seed,
            replicates=replicates,
        )
        for m in (GAP_MEASURES if len(groups) > 1 else ())
    }
    draws: Draws = {(m,): draw(s, slim, patients_behind(m, slim)) for m, s in MEASURES.items()}
    for g in groups:
        inside = [c for c in slim if c.group == g]
        for m in GROUP_MEASURES:
            draws[m, g] = draw(MEASURES[m], inside, patients_behind(m, inside))
    strata = [(k, s) for k, s in enumerate(stratified(lesions_in(slim))) if s.lesions]
    for k, stratum in strata:
        behind = len({c.patient for c in slim if stratified(_lesions_of(c))[k].lesions})
        for way in WAYS:
            draws[way, _range(stratum)] = draw(_rate(stratum, way), slim, behind)
    scores, abnormal = [c.score for c in slim], [c.abnormal for c in slim]
    found = MethodResult(
        method=name,
        folder=folder,
        measures={m: draws[m,].interval() for m in MEASURES},
        groups={g: {m: draws[m, g].interval() for m in GROUP_MEASURES} for g in groups},
        cases=cases,
        facts=facts,
        leakage=seen,
        gaps={m: found for m, found in gaps.items() if np.isfinite(found.gap.value)},
        sizes=[
            Size(stratum, *(draws[way, _range(stratum)].interval() for way in WAYS))
            for _, stratum in strata
        ],
        confounding=confounding(scores, abnormal, [c.origin for c in slim]),
        turnaround=turnaround(scores, abnormal, seed=seed)
        if any(abnormal) and not all(abnormal)
        else None,
        curves=Curves(
            froc(lesions_in(slim)),
            reliability_in(slim),
            calibration_error.risk_coverage(errors_in(slim)),
        ),
    )
    return replace(found, left_out=_left_out(found)), draws


def _lesions_of(case: Measured) -> list[Lesions]:
    return [] if case.lesions is None else [case.lesions]


def _rate(stratum: Stratum, way: str) -> Statistic:
    """Share of the lesions of a size that were found."""

    def statistic(cases: Sequence[Measured]) -> float:
        found = [
            hit
            for c in lesions_in(cases)
            for volume, hit in zip(c.volumes_ml, getattr(c, way), strict=True)
            if stratum.low_ml <= volume < stratum.high_ml
        ]
        return sum(found) / len(found) if found else float("nan")

    return statistic


def _with_reference(cases: Sequence[Measured]) -> list[Measured]:
    """Every other patient with healthy volumes is one of those that others are compared with."""
    order = sorted({c.patient for c in cases if not c.abnormal})
    chosen = set(order[::2])
    return [replace(c, reference=not c.abnormal and c.patient in chosen) for c in cases]


def _on_common_bins(cases: Sequence[Measured]) -> list[Measured]:
    maps = detection.coarse([c.histogram for c in cases])
    with_errors = [c.errors for c in cases if c.errors is not None]
    errors = iter(detection.coarse(with_errors) if with_errors else [])
    return [
        replace(c, histogram=h, errors=None if c.errors is None else next(errors))
        for c, h in zip(cases, maps, strict=True)
    ]


def _left_out(found: MethodResult) -> list[str]:
    """What has no metric, with the reason, in a few words each."""
    cases, value = found.cases, {m: i.value for m, i in found.measures.items()}
    lines = []
    if not lesions_in(cases):
        lines.append("lesions and boxes (no masks)")
    if found.curves.reliability is None:
        lines.append("reliability (no probabilities; validation volumes with truth fit them)")
    if found.curves.risk_coverage is None:
        lines.append(
            "risk-coverage (no uncertainty maps and masks; ensemble.seeds > 1 writes them)"
        )
    if not restored_in(cases):
        lines.append("RQI, AHI, CACI (no pseudo-healthy volumes and images)")
    elif not np.isfinite(value["ahi"]):
        lines.append("AHI (too few volumes, or lesions change the features too little)")
    if not np.isfinite(value["seconds"]):
        lines.append("cost (no ledger)")
    return lines
