"""Metrics: exact scikit-learn, hand-counted fixtures and the table of degenerate cases."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from volumediff.metrics import bootstrap as boot
from volumediff.metrics import detection as det
from volumediff.metrics.overlap import overlap

N = 60_000


def _maps(kind):
    g = torch.Generator().manual_seed(3)
    lesion = torch.rand(N, generator=g) < 0.01
    truth = lesion.float()
    x = torch.randn(N, generator=g)
    scores = {
        "gaussian": x + 1.5 * truth,
        # Cauchy-like: the largest value is some 10^5 times the median
        "heavy tailed": (x / torch.randn(N, generator=g)).abs() * (1 + 4 * truth),
        "log-uniform": 10 ** (8 * (torch.rand(N, generator=g) - 0.5)) * (1 + 9 * truth),
        "narrow": 0.99 + 0.01 * torch.sigmoid(x + truth),
        "ties": torch.round(x + truth),
        "constant": torch.ones(N),
        "reversed": x - truth,
    }
    return scores[kind], lesion


KINDS = ["gaussian", "heavy tailed", "log-uniform", "narrow", "ties", "constant", "reversed"]


@pytest.mark.parametrize("kind", KINDS)
def test_voxel_metrics_equal_scikit_learn(kind):
    scores, truth = _maps(kind)
    h = det.histogram(scores, truth)
    assert len(h.keys) < N or kind in ("heavy tailed", "log-uniform")
    y, s = truth.numpy(), scores.numpy()
    assert det.average_precision(h) == pytest.approx(average_precision_score(y, s), abs=1e-3)
    assert det.auroc(h) == pytest.approx(roc_auc_score(y, s), abs=1e-3)
    precision, recall, _ = precision_recall_curve(y, s)
    exact = np.nanmax(2 * precision * recall / np.maximum(precision + recall, 1e-12))
    best = det.best_dice(h)
    assert best.oracle
    assert best.dice == pytest.approx(exact, abs=1e-3)
    chosen = overlap(scores > best.threshold, truth, spacing_mm=(1.0, 1.0, 1.0))
    assert chosen.dice == pytest.approx(best.dice, abs=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_weighted_scikit_learn_agrees_to_rounding(kind):
    # The same binned counts, given to scikit-learn as weights: the formulas alone.
    h = det.histogram(*_maps(kind))
    y = np.repeat([1, 0], len(h.keys))
    s = np.concatenate([h.edges, h.edges])
    w = np.concatenate([h.abnormal, h.healthy])
    assert det.average_precision(h) == pytest.approx(
        average_precision_score(y, s, sample_weight=w), abs=1e-9
    )
    assert det.auroc(h) == pytest.approx(roc_auc_score(y, s, sample_weight=w), abs=1e-9)


def test_edges_are_the_lower_ends_of_the_bins():
    scores = torch.tensor([-3.0, -1e-20, -0.0, 0.0, 1e-20, 2.5, 1e30])
    h = det.histogram(scores)
    assert len(h.keys) == 6  # both zeros share a bin
    values = np.unique(scores.numpy())
    assert np.all(h.edges <= values)
    assert np.all(np.diff(h.edges) > 0)
    np.testing.assert_allclose(h.edges, values, rtol=2.0**-12)


def test_coarse_bins_keep_the_figures():
    parts = [det.histogram(*_maps(k)) for k in ("gaussian", "heavy tailed", "reversed")]
    few = det.coarse(parts)
    assert all(h.keys is few[0].keys for h in few)
    assert len(few[0].keys) <= 4098
    for fine, rough in zip([*parts, det.total(parts)], [*few, det.total(few)], strict=True):
        assert rough.abnormal.sum() == fine.abnormal.sum()
        assert det.average_precision(rough) == pytest.approx(det.average_precision(fine), abs=1e-3)
        assert det.auroc(rough) == pytest.approx(det.auroc(fine), abs=1e-3)
        assert det.best_dice(rough).dice == pytest.approx(det.best_dice(fine).dice, abs=2e-3)


def test_histograms_of_parts_add_up_and_ignore_the_background():
    scores, truth = _maps("gaussian")
    whole = det.histogram(scores, truth)
    parts = [det.histogram(s, t) for s, t in zip(scores.chunk(7), truth.chunk(7), strict=True)]
    for joined in (det.total(parts), det.total(parts[::-1])):
        np.testing.assert_array_equal(joined.keys, whole.keys)
        np.testing.assert_array_equal(joined.healthy, whole.healthy)
        np.testing.assert_array_equal(joined.abnormal, whole.abnormal)
    padded = torch.cat([scores, torch.full((999,), 7.0)])
    lesion = torch.cat([truth, torch.ones(999, dtype=torch.bool)])
    inside = torch.arange(N + 999) < N
    again = det.histogram(padded, lesion, foreground=inside)
    np.testing.assert_array_equal(again.healthy, whole.healthy)


def test_rates_follow_the_counts():
    scores = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    h = det.histogram(scores, torch.tensor([False, False, True, False, True]))
    assert det.rates(h, 0.25) == det.Rates(tpr=1.0, fpr=1 / 3)
    assert det.rates(h, 0.45) == det.Rates(tpr=0.5, fpr=0.0)


def test_degenerate_cases():
    scores = torch.arange(5.0)
    none, every = torch.zeros(5, dtype=torch.bool), torch.ones(5, dtype=torch.bool)
    one = torch.tensor([False, False, True, False, False])
    empty = det.total([])
    for h in (det.histogram(scores, none), empty):
        assert math.isnan(det.average_precision(h))
        assert math.isnan(det.auroc(h))
        assert math.isnan(det.best_dice(h).dice)
    full = det.histogram(scores, every)
    assert det.average_precision(full) == 1
    assert math.isnan(det.auroc(full))
    assert det.best_dice(full).dice == 1
    constant = det.histogram(torch.ones(5), one)
    assert det.average_precision(constant) == pytest.approx(0.2) == det.prevalence(constant)
    assert det.auroc(constant) == 0.5
    perfect = det.histogram(one.float(), one)
    assert (det.average_precision(perfect), det.auroc(perfect)) == (1, 1)
    assert math.isnan(det.prevalence(empty))
    assert math.isnan(det.volume_auroc([0.1, 0.4], [True, True]))
    assert det.volume_auroc([0.1, 0.4, 0.4, 0.9], [False, False, True, True]) == 0.875
    with pytest.raises(ValueError, match="expected finite map values, got 1 NaN or Inf"):
        det.histogram(torch.tensor([0.0, float("nan")]))


@pytest.mark.parametrize(
    ("mask", "truth", "dice", "precision", "recall", "ml"),
    [
        ("1100", "0110", 0.5, 0.5, 0.5, 0.008),
        ("0110", "0110", 1.0, 1.0, 1.0, 0.0),
        ("1001", "0110", 0.0, 0.0, 0.0, 0.016),
        ("0000", "0110", 0.0, math.nan, 0.0, 0.0),
        ("1100", "0000", math.nan, 0.0, math.nan, 0.016),
        ("0000", "0000", math.nan, math.nan, math.nan, 0.0),
    ],
)
def test_overlap_table(mask, truth, dice, precision, recall, ml):
    m, y = (torch.tensor([c == "1" for c in word]) for word in (mask, truth))
    got = overlap(m, y, spacing_mm=(2.0, 2.0, 2.0))
    assert got.dice == pytest.approx(dice, nan_ok=True)
    assert got.precision == pytest.approx(precision, nan_ok=True)
    assert got.recall == pytest.approx(recall, nan_ok=True)
    assert got.false_positive_ml == pytest.approx(ml)


def test_overlap_counts_the_foreground_only():
    m, y = torch.tensor([True, True, False]), torch.tensor([True, False, True])
    inside = torch.tensor([True, False, False])
    assert overlap(m, y, foreground=inside, spacing_mm=(1.0, 1.0, 1.0)).dice == 1


def test_bootstrap_covers_the_mean():
    # 95% intervals of a Gaussian mean: about 93% coverage at n = 25, well away from 80 or 100.
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(200):
        sample = list(rng.normal(size=25))
        ci = boot.bootstrap(sample, lambda v: float(np.mean(v)), seed=seed, replicates=200)
        assert ci.low < ci.value < ci.high
        hits += ci.low < 0 < ci.high
    assert 0.86 < hits / 200 < 0.99


def test_bootstrap_resamples_patients_and_is_keyed():
    def mean(values):
        return float(np.mean(values))

    values = [0.0] * 50 + [1.0] * 50
    five = [name for name in "abcde" for _ in range(20)]
    one = boot.bootstrap([float(p == "e") for p in five], mean, patients=five, seed=1)
    assert one.value == 0.2
    assert (one.low, one.high) == (0, 0.6)  # 0 to 3 of 5: binomial quantiles of n = 5, p = 1/5
    free = boot.bootstrap(values, mean, seed=1)
    assert 0.3 < free.low < free.high < 0.7
    assert free == boot.bootstrap(values, mean, seed=1)
    assert free != boot.bootstrap(values, mean, seed=2)
    undefined = boot.bootstrap([1.0] * 5 + [math.nan], mean, seed=0, replicates=100)
    assert math.isnan(undefined.value)
    assert 0 < undefined.replicates < 100
    assert math.isnan(boot.bootstrap([], mean).value)


def test_no_interval_with_fewer_than_five_patients():
    def mean(values):
        return float(np.mean(values))

    for count in (1, 2, 3, 4):
        ci = boot.bootstrap(list(np.arange(count) + 0.0), mean)
        assert ci.value == (count - 1) / 2
        assert math.isnan(ci.low)
        assert math.isnan(ci.high)
        assert ci.replicates == 0
    assert math.isfinite(boot.bootstrap([0.0, 1.0, 2.0, 3.0, 4.0], mean).low)
    # volumes are no patients
    assert math.isnan(boot.bootstrap([0.0, 1.0] * 10, mean, patients=["a", "b"] * 10).low)


def test_differences_are_paired():
    # What both methods find hard cancels: the difference of the means is the constant.
    rng = np.random.default_rng(0)
    hard = rng.normal(size=12)
    patients = [f"p{i // 2}" for i in range(12)]

    def of(values):
        return boot.resampled(list(values), lambda v: float(np.mean(v)), patients=patients)

    sure = boot.difference(of(hard + 0.25), of(hard)).interval()
    assert (sure.value, sure.low, sure.high) == pytest.approx((0.25, 0.25, 0.25))
    other = rng.normal(size=12)
    joint = boot.bootstrap(
        list(zip(hard, other, strict=True)),
        lambda pairs: float(np.mean([a for a, _ in pairs]) - np.mean([b for _, b in pairs])),
        patients=patients,
    )
    apart = boot.difference(of(hard), of(other)).interval()
    assert (apart.value, apart.low, apart.high) == pytest.approx(
        (joint.value, joint.low, joint.high)
    )
    with pytest.raises(ValueError, match="expected resamples of the same patients"):
        boot.difference(of(hard), boot.resampled([1.0], lambda v: v[0]))


def test_bootstrap_of_histograms():
    parts = []
    for i in range(8):
        g = torch.Generator().manual_seed(i)
        truth = torch.rand(4000, generator=g) < 0.02
        parts.append(det.histogram(torch.randn(4000, generator=g) + (1 + 0.1 * i) * truth, truth))
    few = det.coarse(parts)
    ci = boot.bootstrap(few, lambda h: det.average_precision(det.total(h)), replicates=200)
    assert ci.low < det.average_precision(det.total(parts)) < ci.high
    assert ci.high - ci.low < 0.2
