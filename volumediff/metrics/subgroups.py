r"""Subgroups: the gap of a metric between groups of patients.

For a metric m(g) of each group g of patients,

    gap = max_g m(g) - min_g m(g),

with a bootstrap interval over patients. A gap is never negative, so that its interval cannot show
that there is none; beside it stands the gap that chance alone makes, the 95th percentile over
random assignments of the patients to groups of the same sizes.

A volume AUROC within a group mixes how its healthy and its abnormal volumes score; with the
abnormal volumes of everyone against the healthy ones of the group, differences are those of false
alarms (sAUROC).

References:
    Meissen et al. (2023), (Predictable) Performance Bias in Unsupervised Anomaly Detection,
    arXiv:2309.14198
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from volumediff.metrics.bootstrap import Interval, bootstrap
from volumediff.metrics.detection import volume_auroc
from volumediff.randomness import key

__all__ = ["Gap", "gap", "subgroup_auroc"]

Item = TypeVar("Item")
Better = Literal["higher", "lower"]
CHANCE = 0.95


@dataclass(frozen=True)
class Gap:
    """Difference between the best and the worst group.

    Arguments:
        gap: with its interval
        worst: name of the worst group; empty where fewer than two groups have a metric
        worst_value: its metric
        chance: gap that 95 % of random assignments of patients to groups do not exceed; nan
            where patients are in several groups, so that there is nothing to assign
    """

    gap: Interval
    worst: str
    worst_value: float
    chance: float


def gap(
    items: Sequence[Item],
    statistic: Callable[[Sequence[Item]], float],
    *,
    groups: Sequence[str],
    patients: Sequence[Hashable] | None = None,
    better: Better = "higher",
    seed: int = 0,
    replicates: int = 1000,
) -> Gap:
    """The gap of any metric between groups.

    Arguments:
        items: one per volume
        statistic: the metric of some items; nan where undefined, and then its group is left out
        groups: group of each item; "" is unknown and left out
        patients: patient of each item; each item is its own by default
        better: which end is the better one
        seed: key of the draws
        replicates: number of draws, of the bootstrap and of the assignments
    """
    owners = list(range(len(items))) if patients is None else list(patients)
    rows = [row for row in zip(items, groups, owners, strict=True) if row[1]]

    def figures(pairs: Sequence[tuple[Item, str]]) -> dict[str, float]:
        members: dict[str, list[Item]] = {}
        for item, group in pairs:
            members.setdefault(group, []).append(item)
        found = {g: float(statistic(members[g])) for g in sorted(members)}
        return {g: v for g, v in found.items() if np.isfinite(v)}

    def spread(pairs: Sequence[tuple[Item, str]]) -> float:
        values = figures(pairs).values()
        return max(values) - min(values) if len(values) > 1 else float("nan")

    pairs, whose = [(item, group) for item, group, _ in rows], [owner for *_, owner in rows]
    interval = bootstrap(pairs, spread, patients=whose, seed=seed, replicates=replicates)
    found = figures(pairs)
    worst, value = "", float("nan")
    if len(found) > 1:
        worst = (min if better == "higher" else max)(found, key=lambda g: found[g])
        value = found[worst]
    return Gap(interval, worst, value, _chance(pairs, whose, spread, seed, replicates))


def _chance(
    pairs: Sequence[tuple[Item, str]],
    patients: Sequence[Hashable],
    spread: Callable[[Sequence[tuple[Item, str]]], float],
    seed: int,
    replicates: int,
) -> float:
    group_of: dict[Hashable, str] = {}
    for patient, (_, group) in zip(patients, pairs, strict=True):
        if group_of.setdefault(patient, group) != group:
            return float("nan")
    rng = np.random.default_rng(key(seed, "chance"))
    names, labels = list(group_of), list(group_of.values())
    gaps = []
    for _ in range(replicates):
        mixed = dict(zip(names, (labels[i] for i in rng.permutation(len(labels))), strict=True))
        assigned = [(item, mixed[p]) for p, (item, _) in zip(patients, pairs, strict=True)]
        gaps.append(spread(assigned))
    finite = [g for g in gaps if np.isfinite(g)]
    return float(np.quantile(finite, CHANCE)) if finite else float("nan")


def subgroup_auroc(
    scores: Sequence[float], abnormal: Sequence[bool], groups: Sequence[str]
) -> dict[str, float]:
    """AUROC of the abnormal volumes of everyone against the healthy ones of each group."""
    rows = list(zip(scores, abnormal, groups, strict=True))
    found = {}
    for name in sorted({g for g in groups if g}):
        kept = [(s, bad) for s, bad, group in rows if bad or group == name]
        found[name] = volume_auroc([s for s, _ in kept], [bad for _, bad in kept])
    return found
