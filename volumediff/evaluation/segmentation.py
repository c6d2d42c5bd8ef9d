"""Evaluation of segmentations, label by label, with bootstrap intervals over patients.

A row per label and one that is called `mean`: the mean of the labels' figures, so that a small
structure counts as much as a large one; what needs all labels at once (readers, entropy, cost) is
in `mean` alone or has its own definition there. Overlap, surfaces and volumes are means over the
volumes; objects, probabilities and shapes are pooled over them. Every method has its paired
difference to every other: on the same patients, resample by resample.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.data.label_names import names_in
from volumediff.data.volume import read
from volumediff.distributed.launch import shared_out
from volumediff.errors import DataError
from volumediff.evaluation.cost_metrics import COST_METRICS
from volumediff.evaluation.leakage import Leakage, leakages
from volumediff.evaluation.output_folders import costs_in, method_name, sidecar
from volumediff.evaluation.segmentation_case import (
    SegmentationRules,
    SegmentedCase,
    measure_segmentation,
)
from volumediff.evaluation.truths import Truth
from volumediff.metrics import calibration_error, detection
from volumediff.metrics.bootstrap import (
    MIN_PATIENTS,
    Interval,
    Replicates,
    difference,
    resampled,
)
from volumediff.metrics.coherence import Shape
from volumediff.metrics.label_agreement import AGREEMENT
from volumediff.metrics.panoptic import Panoptic, lesion_counts, panoptic, panoptic_by_size
from volumediff.metrics.readers import READERS

__all__ = ["MEAN", "SegmentationEvaluation", "evaluate_segmentations"]

MEAN = "mean"
Draws = dict[tuple[str, str], Replicates]
"""(label or `mean`, metric) -> its value and those of the resamples."""

OBJECTS = {
    "lesion_f1": lambda counts: sum((c[0] for c in counts), Panoptic()).rq,
    "pq": lambda counts: sum((c[1] for c in counts), Panoptic()).pq,
    "rq": lambda counts: sum((c[1] for c in counts), Panoptic()).rq,
    "sq": lambda counts: sum((c[1] for c in counts), Panoptic()).sq,
}
CALIBRATION = {"ece": "ece", "ace": "ace", "mce": "mce", "brier": "brier", "brier_skill": "skill"}


@dataclass(frozen=True, eq=False)
class SegmentationEvaluation:
    """Metrics of one folder of segmentations.

    Arguments:
        method: name of the method
        folder: of the label maps
        labels: label value, or `mean` -> metric -> value with its interval
        sizes: label value -> size range in ml -> pooled counts of its objects
        groups: subgroup -> mean Dice
        cases: the volumes
        facts: from the JSON beside the first label map
        rules: how labels were compared
        names: label value -> what it stands for, where the data set says so
        left_out: what could not be said, and why
        leakage: volumes that the model has seen before
        differences: other method -> label value or `mean` -> metric -> this minus the other
        without_seen: the metrics without the volumes that some model has seen, where there are any
    """

    method: str
    folder: Path
    labels: Mapping[str, Mapping[str, Interval]]
    sizes: Mapping[str, Mapping[tuple[float, float], Panoptic]]
    groups: Mapping[str, Interval]
    cases: Sequence[SegmentedCase]
    facts: Mapping[str, Any]
    rules: SegmentationRules
    names: Mapping[int, str] = field(default_factory=dict)
    left_out: Sequence[str] = ()
    leakage: Leakage = field(default_factory=Leakage)
    differences: Mapping[str, Mapping[str, Mapping[str, Interval]]] = field(default_factory=dict)
    without_seen: "SegmentationEvaluation | None" = None

    @property
    def values(self) -> tuple[int, ...]:
        """The labels that were compared."""
        return tuple(int(name) for name in self.labels if name != MEAN)


def evaluate_segmentations(
    found: Mapping[Path, Mapping[str, Path]],
    known: Mapping[str, Truth],
    *,
    rules: SegmentationRules,
    by: str | None = None,
    seed: int = 0,
    replicates: int = 1000,
    allow_seen: bool = False,
    same_names: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[SegmentationEvaluation]:
    """Compares folders of label maps, each of one method, with the truth, on shared cases.

    Arguments:
        found: folder -> case -> label map
        known: truth of the shared cases
        rules: labels, tolerance, and what counts where a label is not there
        by, seed, replicates, allow_seen, same_names, report: as for `evaluate`

    Raises:
        UsageError: two folders of one method
        DataError: truth of boxes or on another grid, nothing to compare, volumes that a model has
            seen, or a volume that is there twice
    """
    facts = {f: {case: sidecar(maps[case]) for case in known} for f, maps in found.items()}
    seen, tainted = leakages(facts, known, allow_seen=allow_seen, same_names=same_names)
    labels = rules.labels or _labels(found, known, facts, report)
    names = _names(labels, facts, known)
    results: dict[str, SegmentationEvaluation] = {}
    draws: dict[str, Draws] = {}
    clean_draws: dict[str, Draws] = {}
    for folder, maps in found.items():
        first = next(iter(facts[folder].values()))
        method = method_name(folder, first, results)
        costs = costs_in(folder)
        measured = shared_out(
            lambda item: measure_segmentation(
                *item[:3], labels=labels, rules=rules, by=by, cost=item[3]
            ),
            [(maps[c], truth, facts[folder][c], costs.get(c)) for c, truth in known.items()],
        )
        cases = dict(zip(known, measured, strict=True))
        blank = SegmentationEvaluation(
            method=method,
            folder=folder,
            labels={},
            sizes={},
            groups={},
            cases=[*cases.values()],
            facts=first,
            rules=rules,
            names=names,
            leakage=seen[folder],
        )
        how = {"labels": labels, "seed": seed, "replicates": replicates}
        result, draws[method] = _summed(blank, **how)
        clean = [c for name, c in cases.items() if name not in tainted]
        if tainted and clean:
            own = replace(blank, cases=clean, leakage=replace(seen[folder], leaks=()))
            rest, clean_draws[method] = _summed(own, **how)
            result = replace(result, without_seen=rest)
        if result.left_out:
            report(f"{folder}: left out: {'; '.join(result.left_out)}")
        results[method] = result
    return [
        replace(
            r,
            differences=_differences(r.method, draws),
            without_seen=r.without_seen
            and replace(r.without_seen, differences=_differences(r.method, clean_draws)),
        )
        for r in results.values()
    ]


def _names(
    labels: Sequence[int],
    facts: Mapping[Path, Mapping[str, Mapping[str, Any]]],
    known: Mapping[str, Truth],
) -> dict[int, str]:
    """What the labels are called by the truth, or else by the results."""
    of_results = [names_in(one) for cases in facts.values() for one in cases.values()]
    named: dict[int, str] = {}
    for names in (*of_results, *(truth.names for truth in known.values())):
        named |= names
    return {value: named[value] for value in labels if value in named}


def _labels(
    found: Mapping[Path, Mapping[str, Path]],
    known: Mapping[str, Truth],
    facts: Mapping[Path, Mapping[str, Mapping[str, Any]]],
    report: Callable[[str], None],
) -> tuple[int, ...]:
    """The labels that the methods know; without a word of theirs, all that occur anywhere.

    Raises:
        DataError: no label at all
    """
    said: set[int] = set()
    seen: set[int] = set()
    for folder, maps in found.items():
        for case in known:
            if volumes := facts[folder][case].get("volumes_ml"):
                said |= {int(v) for v in volumes}
            else:
                seen |= set(np.unique(read(maps[case], kind="label").array).tolist())
    truth: set[int] = set()
    for case, one in known.items():
        like = read(next(iter(found.values()))[case], kind="label")
        there = one.label_maps(like)
        every = there.consensus if there.readers is None else there.readers
        truth |= set(np.unique(every).tolist())
    chosen = said or truth | seen
    chosen |= seen
    if unknown := sorted(truth - chosen - {0}):
        report(
            f"no method knows label {', '.join(map(str, unknown))} of the truth: left out; give "
            "labels to count it as missed"
        )
    result = tuple(sorted(chosen - {0}))
    if not result:
        raise DataError(
            "expected a label in the truth or in a segmentation, got background alone."
        )
    return result


def _differences(
    method: str, draws: Mapping[str, Draws]
) -> dict[str, dict[str, dict[str, Interval]]]:
    """This method minus each of the others; what something costs has no difference."""
    result: dict[str, dict[str, dict[str, Interval]]] = {}
    for other, theirs in draws.items():
        if other == method:
            continue
        rows = result.setdefault(other, {})
        for key, mine in draws[method].items():
            label, metric = key
            if key in theirs and metric not in COST_METRICS:
                rows.setdefault(label, {})[metric] = _difference(mine, theirs[key])
    return result


def _difference(mine: Replicates, theirs: Replicates) -> Interval:
    """Without an interval where too few patients have the metric of one of the two."""
    if len(mine.draws) != len(theirs.draws):
        return Replicates(mine.value - theirs.value, np.zeros(0)).interval()
    return difference(mine, theirs).interval()


def _summed(
    blank: SegmentationEvaluation, *, labels: Sequence[int], seed: int, replicates: int
) -> tuple[SegmentationEvaluation, Draws]:
    """The figures of all volumes; equal draws for every method and metric."""
    cases = blank.cases

    def draw(items: Sequence[Any], statistic: Callable[[Sequence[Any]], float]) -> Replicates:
        """A statistic of an item per case; None and nan say nothing."""
        telling = {c.patient for c, i in zip(cases, items, strict=True) if _tells(i)}
        return resampled(
            items,
            statistic,
            patients=[c.patient for c in cases],
            seed=seed,
            replicates=replicates if len(telling) >= MIN_PATIENTS else 0,
        )

    draws: Draws = {}
    for v in labels:
        rows = {m: draw([c.agreement[v][m] for c in cases], _mean) for m in AGREEMENT}
        counts = [(lesion_counts(c.objects[v]), panoptic(c.objects[v])) for c in cases]
        rows |= {m: draw(counts, statistic) for m, statistic in OBJECTS.items()}
        tables = [c.reliability.get(v) for c in cases]
        if any(tables):
            rows |= {m: draw(tables, _of_tables(name)) for m, name in CALIBRATION.items()}
        if any(c.readers for c in cases):
            for m in READERS:
                rows[m] = draw([c.readers.get(v, {}).get(m, np.nan) for c in cases], _mean)
        if any(c.shapes for c in cases):
            shapes = [c.shapes.get(v) for c in cases]
            for k, m in enumerate(("components_ratio", "surface_ratio")):
                rows[m] = draw(shapes, lambda items, k=k: _relative(items)[k])
            rows["components"] = draw(shapes, _components)
        draws |= {(str(v), m): replicated for m, replicated in rows.items()}
    for m in {m: None for _, m in draws}:
        draws[MEAN, m] = _mean_of([draws[str(v), m] for v in labels if (str(v), m) in draws])
    if any(c.readers_mean for c in cases):
        for m in READERS:
            draws[MEAN, m] = draw([c.readers_mean.get(m, np.nan) for c in cases], _mean)
    errors = [c.errors for c in cases]
    if any(e is not None for e in errors):
        slim = iter(detection.coarse([e for e in errors if e is not None]))
        errors = [None if e is None else next(slim) for e in errors]
        draws[MEAN, "entropy_auroc"] = draw(errors, lambda hs: detection.auroc(_pooled(hs)))
        draws[MEAN, "aurc"] = draw(errors, lambda hs: calibration_error.aurc(_pooled(hs)))
    for m in COST_METRICS:
        draws[MEAN, m] = draw([c.cost.get(m, np.nan) for c in cases], _mean)
    groups = sorted({c.group for c in cases} - {""})
    table: dict[str, dict[str, Interval]] = {str(v): {} for v in labels} | {MEAN: {}}
    for (label, m), replicated in draws.items():
        table[label][m] = replicated.interval()
    result = replace(
        blank,
        labels=table,
        sizes={str(v): panoptic_by_size([c.objects[v] for c in cases]) for v in labels},
        groups={g: _group(cases, g, labels, seed=seed, replicates=replicates) for g in groups},
    )
    return replace(result, left_out=_left_out(result)), draws


def _tells(item: Any) -> bool:
    return item is not None and not (isinstance(item, float) and np.isnan(item))


def _mean(values: Iterable[float]) -> float:
    every = np.asarray(values, dtype=float)
    every = every[np.isfinite(every)]
    return float(every.mean()) if len(every) else float("nan")


def _mean_of(parts: Sequence[Replicates]) -> Replicates:
    """Mean over labels of what is defined, resample by resample."""
    if not parts:
        return Replicates(float("nan"), np.zeros(0))
    whole = _mean([p.value for p in parts])
    defined = [p.draws for p in parts if np.isfinite(p.value)]
    # a label without an interval is in the value: an interval of the others is not that of it
    if not defined or len({len(d) for d in defined}) > 1 or not len(defined[0]):
        return Replicates(whole, np.zeros(0))
    drawn = np.stack(defined)
    there = np.isfinite(drawn)
    sums, counts = np.where(there, drawn, 0).sum(axis=0), there.sum(axis=0)
    means = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
    return Replicates(whole, means)


def _of_tables(name: str) -> Callable[[Sequence[Any]], float]:
    def statistic(tables: Sequence[calibration_error.Reliability | None]) -> float:
        found = calibration_error.total(t for t in tables if t is not None)
        return float("nan") if found is None else getattr(found, name)

    return statistic


def _relative(shapes: Sequence[tuple[Shape, Shape] | None]) -> tuple[float, float]:
    pairs = [s for s in shapes if s is not None]
    mine, theirs = (sum((p[i] for p in pairs), Shape()) for i in (0, 1))
    return mine.relative(theirs)


def _components(shapes: Sequence[tuple[Shape, Shape] | None]) -> float:
    mine = sum((s[0] for s in shapes if s is not None), Shape())
    return mine.components / mine.masks if mine.masks else float("nan")


def _pooled(histograms: Sequence[detection.Histogram | None]) -> detection.Histogram:
    return detection.total(h for h in histograms if h is not None)


def _group(
    cases: Sequence[SegmentedCase],
    group: str,
    labels: Sequence[int],
    *,
    seed: int,
    replicates: int,
) -> Interval:
    """Mean Dice of a subgroup: of its volumes' means over labels."""
    inside = [c for c in cases if c.group == group]
    return resampled(
        [_mean([c.agreement[v]["dice"] for v in labels]) for c in inside],
        _mean,
        patients=[c.patient for c in inside],
        seed=seed,
        replicates=replicates,
    ).interval()


def _left_out(found: SegmentationEvaluation) -> list[str]:
    """What has no metric, with the reason, in a few words each."""
    cases, lines = found.cases, []
    if not any(c.readers for c in cases):
        lines.append("GED, HM-IoU, CI (the truth has one reader)")
    if not any(c.samples for c in cases):
        lines.append("coherence of samples (no <case>_desc-sample<i>_dseg files)")
    if not any(c.reliability for c in cases):
        lines.append("calibration, entropy, risk-coverage (no <case>_label-<v>_probseg files)")
    if not any(c.cost for c in cases):
        lines.append("cost (no ledger)")
    return lines
