"""Evaluation of translated channels, with bootstrap intervals over patients.

A row per channel and metric. Every method has its paired difference to the first: on the same
patients, resample by resample.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.data.cases import Case, safe_id
from volumediff.data.files import stem_of
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.survey import AUTO, Spec, survey_cases
from volumediff.distributed.launch import shared_out
from volumediff.errors import DataError, UsageError
from volumediff.evaluation.cost_metrics import COST_METRICS
from volumediff.evaluation.leakage import Leakage, leakages
from volumediff.evaluation.output_folders import costs_in, method_name
from volumediff.evaluation.translation_case import Segments, TranslatedCase, measure_translation
from volumediff.evaluation.truths import Truth
from volumediff.metrics.bootstrap import Interval, Replicates, difference, resampled
from volumediff.outputs.sidecar import read_facts
from volumediff.outputs.translation_files import record_beside

__all__ = ["TranslationEvaluation", "evaluate_translations", "measured_cases"]

ALL = ""  # what is about all channels of a case
Draws = dict[tuple[str, str], Replicates]
"""(channel, metric) -> its value and those of the resamples."""


@dataclass(frozen=True, eq=False)
class TranslationEvaluation:
    """Metrics of one folder of translations.

    Arguments:
        method: name of the method
        folder: of the translated channels
        channels: channel -> metric -> value with its interval; what is about all channels of a
            case, lesions and cost, is under an empty name
        cases: the cases
        facts: from the JSON beside the first case
        groups: subgroup -> mean PSNR over channels
        leakage: cases that the model has seen before
        differences: other method -> channel -> metric -> this minus the other
        without_seen: the metrics without the cases that some model has seen, where there are any
    """

    method: str
    folder: Path
    channels: Mapping[str, Mapping[str, Interval]]
    cases: Sequence[TranslatedCase]
    facts: Mapping[str, Any]
    groups: Mapping[str, Interval] = field(default_factory=dict)
    leakage: Leakage = field(default_factory=Leakage)
    differences: Mapping[str, Mapping[str, Mapping[str, Interval]]] = field(default_factory=dict)
    without_seen: "TranslationEvaluation | None" = None


def measured_cases(root: Path | str, layout: Spec = AUTO) -> dict[str, Case]:
    """The cases of a data set by every name that a translation may have: the case's, or that of
    the file that was given.

    Raises:
        DataError: no cases
    """
    cases = survey_cases(root, layout)[0]
    found = {case.id: case for case in cases}
    for case in cases:
        for path in case.images.values():
            found.setdefault(safe_id(stem_of(path)), case)
    return found


def evaluate_translations(
    found: Mapping[Path, Mapping[str, Mapping[str, Path]]],
    measured: Mapping[str, Case],
    *,
    policy: ReadPolicy | None = None,
    segments: Segments | None = None,
    by: str | None = None,
    seed: int = 0,
    replicates: int = 1000,
    allow_seen: bool = False,
    same_names: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> list[TranslationEvaluation]:
    """Compares folders of translations, each of one method, with measured channels.

    Arguments:
        found: folder -> case -> channel -> translated channel
        measured: cases of the data set by the names that translations have
        policy: decisions on ambiguous files
        segments: gives labels of channels, for the Dice of lesions
        by, seed, replicates, allow_seen, same_names, report: as for `evaluate`

    Raises:
        UsageError: folders that share no case, or two folders of one method
        DataError: no measured channel for any case, grids that differ, cases that a model has
            seen, or a volume that is there twice
    """
    known = _known(found, measured, report)
    records = {
        folder: {case: record_beside(next(iter(channels[case].values()))) for case in known}
        for folder, channels in found.items()
    }
    facts = {
        folder: {case: read_facts(path) for case, path in there.items()}
        for folder, there in records.items()
    }
    truths = {
        name: Truth(case.id, case.patient, None, case.attributes) for name, case in known.items()
    }
    seen, tainted = leakages(facts, truths, allow_seen=allow_seen, same_names=same_names)
    results: dict[str, TranslationEvaluation] = {}
    draws: dict[str, Draws] = {}
    clean_draws: dict[str, Draws] = {}
    for folder, channels in found.items():
        first = next(iter(facts[folder].values()))
        method = method_name(folder, first, results)
        costs = costs_in(folder)
        cases = shared_out(
            lambda item: measure_translation(
                *item[:2],
                policy=policy or ReadPolicy(),
                by=by,
                cost=item[2],
                segments=segments,
            ),
            [(channels[name], case, costs.get(name)) for name, case in known.items()],
        )
        blank = TranslationEvaluation(method, folder, {}, cases, first, leakage=seen[folder])
        how = {"seed": seed, "replicates": replicates}
        result, draws[method] = _summed(blank, **how)
        clean = [c for name, c in zip(known, cases, strict=True) if name not in tainted]
        if tainted and clean:
            own = replace(blank, cases=clean, leakage=replace(seen[folder], leaks=()))
            rest, clean_draws[method] = _summed(own, **how)
            result = replace(result, without_seen=rest)
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


def _known(
    found: Mapping[Path, Mapping[str, Mapping[str, Path]]],
    measured: Mapping[str, Case],
    report: Callable[[str], None],
) -> dict[str, Case]:
    """The cases that every folder has with the same channels, and that were measured."""
    shared = set.intersection(*(set(cases) for cases in found.values()))
    if not shared:
        raise UsageError(
            f"{', '.join(map(str, found))}: expected translations of the same cases, got folders "
            "without a case in common; evaluate them one by one."
        )
    for folder, cases in found.items():
        if extra := sorted(set(cases) - shared):
            report(f"{folder}: {len(extra)} cases are not in every folder, left out: {extra[0]}")
    there = sorted(shared & set(measured))
    if missing := sorted(shared - set(there)):
        report(f"no measured case for {len(missing)} translations, left out: {missing[0]}")
    if not there:
        raise DataError(
            f"truth: no case fits the translations, for example {min(shared)}; expected a data "
            "set with the measured channels of these cases."
        )
    for name in there:
        kinds = {tuple(sorted(cases[name])) for cases in found.values()}
        if len(kinds) > 1:
            raise DataError(
                f"{name}: expected the same channels in every folder, got "
                f"{' and '.join(', '.join(k) for k in sorted(kinds))}; evaluate them one by one."
            )
    return {name: measured[name] for name in there}


def _summed(
    blank: TranslationEvaluation, *, seed: int, replicates: int
) -> tuple[TranslationEvaluation, Draws]:
    cases = blank.cases
    patients = [c.patient for c in cases]

    def draw(values: Sequence[float]) -> Replicates:
        return resampled(values, _mean, patients=patients, seed=seed, replicates=replicates)

    draws: Draws = {}
    for channel in dict.fromkeys(name for c in cases for name in c.channels):
        for metric in ("psnr", "ssim"):
            values = [c.channels.get(channel, {}).get(metric, np.nan) for c in cases]
            draws[channel, metric] = draw(values)
    for metric in dict.fromkeys(m for c in cases for m in c.lesions):
        draws[ALL, metric] = draw([c.lesions.get(metric, np.nan) for c in cases])
    for metric in COST_METRICS:
        if any(metric in c.cost for c in cases):
            draws[ALL, metric] = draw([c.cost.get(metric, np.nan) for c in cases])
    table: dict[str, dict[str, Interval]] = {}
    for (channel, metric), replicated in draws.items():
        table.setdefault(channel, {})[metric] = replicated.interval()
    groups = {}
    for group in sorted({c.group for c in cases} - {""}):
        inside = [c for c in cases if c.group == group]
        groups[group] = resampled(
            [_mean([m["psnr"] for m in c.channels.values()]) for c in inside],
            _mean,
            patients=[c.patient for c in inside],
            seed=seed,
            replicates=replicates,
        ).interval()
    return replace(blank, channels=table, groups=groups), draws


def _differences(
    method: str, draws: Mapping[str, Draws]
) -> dict[str, dict[str, dict[str, Interval]]]:
    """This method minus each of the others; what something costs has no difference."""
    result: dict[str, dict[str, dict[str, Interval]]] = {}
    for other, theirs in draws.items():
        for key, mine in draws.get(method, {}).items():
            channel, metric = key
            if other != method and key in theirs and metric not in COST_METRICS:
                rows = result.setdefault(other, {}).setdefault(channel, {})
                rows[metric] = difference(mine, theirs[key]).interval()
    return result


def _mean(values: Sequence[float]) -> float:
    every = np.asarray(values, dtype=float)
    every = every[~np.isnan(every)]
    return float(every.mean()) if len(every) else float("nan")
