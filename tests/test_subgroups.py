"""Gaps between groups: by hand, by scikit-learn, and what chance makes of equal groups."""

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from volumediff.metrics.subgroups import gap, subgroup_auroc


def mean(values):
    return float(np.mean(values)) if len(values) else float("nan")


def test_gap_by_hand():
    values, groups = [0.2, 0.4, 0.9, 0.7, 0.1], ["f", "f", "m", "m", ""]
    got = gap(values, mean, groups=groups, replicates=200)
    assert got.gap.value == pytest.approx(0.5)
    assert (got.worst, got.worst_value) == ("f", pytest.approx(0.3))
    assert gap(values, mean, groups=groups, better="lower", replicates=0).worst == "m"
    many = gap(values * 3, mean, groups=groups * 3, replicates=200)
    assert 0 <= many.gap.low <= got.gap.value <= many.gap.high
    assert math.isnan(got.gap.low)  # four patients
    # of the 6 ways to make two pairs, two have the gap 0.5, two 0.2 and two 0
    assert got.chance == pytest.approx(0.5)
    again = gap(values[::-1], mean, groups=groups[::-1], replicates=0)
    assert again.gap.value == pytest.approx(0.5)


def test_gap_of_three_groups_is_between_the_extremes():
    got = gap([1.0, 5.0, 3.0], mean, groups=["a", "b", "c"], replicates=0)
    assert (got.gap.value, got.worst, got.worst_value) == (4, "a", 1)


def test_groups_without_a_figure_are_left_out():
    got = gap([1.0, 2.0, math.nan], mean, groups=["b", "c", "a"], replicates=0)
    assert got.gap.value == 1
    one = gap([1.0, 2.0], mean, groups=["a", "a"], replicates=10)
    assert math.isnan(one.gap.value)
    assert (one.worst, math.isnan(one.worst_value)) == ("", True)
    assert math.isnan(gap([], mean, groups=[], replicates=10).gap.value)


def test_patients_stay_together():
    # 40 volumes of one patient per group: no interval, and chance has no second patient
    values, groups = [0.0, 2.0] * 20 + [1.0, 3.0] * 20, ["a"] * 40 + ["b"] * 40
    got = gap(values, mean, groups=groups, patients=groups, replicates=200)
    assert math.isnan(got.gap.low)
    assert (got.gap.value, got.chance) == (1, 1)
    # three patients per group, equal within a group: the interval has no width
    patients = [f"{g}{i % 3}" for i, g in enumerate(groups)]
    level = [float(g == "b") for g in groups]
    wide = gap(level, mean, groups=groups, patients=patients, replicates=200)
    assert (wide.gap.low, wide.gap.high) == (1, 1)
    both = gap(values, mean, groups=groups, patients=["p"] * 80, replicates=20)
    assert math.isnan(both.chance)


def test_a_gap_is_judged_against_chance():
    rng = np.random.default_rng(0)
    groups = ["a", "b"] * 40
    equal, exceeded = rng.normal(size=(100, 80)), 0
    for values in equal:
        got = gap(list(values), mean, groups=groups, replicates=100)
        exceeded += got.gap.value > got.chance
    assert exceeded <= 15  # 5 are expected
    shifted = equal[0] + 2.0 * (np.arange(80) % 2)
    unequal = gap(list(shifted), mean, groups=groups, replicates=200)
    assert unequal.gap.value > unequal.chance
    assert unequal.worst == "a"
    assert unequal.gap.low < 2 < unequal.gap.high


def test_subgroup_auroc_is_that_of_scikit_learn():
    rng = np.random.default_rng(1)
    abnormal, groups = rng.random(60) < 0.4, rng.choice(["x", "y", ""], 60)
    scores = rng.normal(size=60) + abnormal + (groups == "y")
    got = subgroup_auroc(scores.tolist(), abnormal.tolist(), groups.tolist())
    assert set(got) == {"x", "y"}
    for name, value in got.items():
        kept = abnormal | (groups == name)
        assert value == pytest.approx(roc_auc_score(abnormal[kept], scores[kept]))
    assert got["y"] < got["x"]  # its healthy volumes raise false alarms
