"""Reliability and risk-coverage against scikit-learn, torchmetrics and brute force."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import brier_score_loss
from torchmetrics.classification import BinaryCalibrationError

from volumediff.metrics import calibration_error as cal
from volumediff.metrics.detection import histogram, total


def made_up(seed=0, n=4000):
    g = torch.Generator().manual_seed(seed)
    p = torch.rand(n, generator=g) ** 3
    return p, torch.rand(n, generator=g) < p


IDENTITY = cal.Probability(tuple(np.linspace(0, 1, 20001)), tuple(np.linspace(0, 1, 20001)))


def test_reliability_is_that_of_the_libraries():
    p, truth = made_up()
    stretched = torch.sqrt(p)  # overconfident
    got = cal.reliability(histogram(stretched, truth), IDENTITY, bins=10)
    for norm, value in (("l1", got.ece), ("max", got.mce)):
        theirs = BinaryCalibrationError(n_bins=10, norm=norm)(stretched, truth.int())
        assert value == pytest.approx(float(theirs), abs=2e-3)
    exact = brier_score_loss(truth.numpy(), stretched.numpy())
    assert got.brier == pytest.approx(exact, abs=1e-3)
    rate = float(truth.float().mean())
    assert got.skill == pytest.approx(1 - exact / (rate * (1 - rate)), abs=5e-3)
    assert got.ece > 0.1
    assert cal.reliability(histogram(p, truth), IDENTITY).ece < 0.03


def test_reliability_by_hand():
    probability = cal.Probability((0.0, 10.0), (0.25, 0.75))
    scores = torch.tensor([-5.0, 1, 2, 3, 10, 11, 12, 13])
    truth = torch.tensor([0, 0, 0, 1, 0, 1, 1, 1]).bool()
    np.testing.assert_allclose(probability(scores.numpy()), [0.25] * 4 + [0.75] * 4)
    got = cal.reliability(histogram(scores, truth), probability, bins=4)
    np.testing.assert_array_equal(got.voxels, [0, 4, 0, 4])
    np.testing.assert_array_equal(got.lesions, [0, 1, 0, 3])
    assert got.ece == got.mce == 0
    assert got.brier == pytest.approx((6 * 0.25**2 + 2 * 0.75**2) / 8)
    wrong = cal.reliability(histogram(scores, ~truth), probability, bins=4)
    assert wrong.ece == wrong.mce == 0.5
    certain = cal.Probability((0.0,), (1.0,))
    last = cal.reliability(histogram(scores, truth), certain)
    assert last.ece == 0.5
    assert last.voxels.tolist() == [0] * (cal.BINS - 1) + [8]  # p = 1 is in the last bin


def test_reliability_of_parts_adds_up():
    p, truth = made_up()
    whole = cal.reliability(histogram(p, truth), IDENTITY)
    parts = [
        cal.reliability(histogram(a, b), IDENTITY)
        for a, b in zip(p.chunk(3), truth.chunk(3), strict=True)
    ]
    joined = cal.total(parts)
    np.testing.assert_array_equal(joined.voxels, whole.voxels)
    for name in ("ece", "mce", "brier", "skill"):
        assert getattr(joined, name) == pytest.approx(getattr(whole, name))
    assert cal.total([]) is None
    nothing = cal.reliability(total([]), IDENTITY)
    assert math.isnan(nothing.ece)
    assert math.isnan(nothing.brier)
    none = cal.reliability(histogram(p, torch.zeros_like(truth)), IDENTITY)
    assert math.isnan(none.skill)
    assert none.ece > 0


def test_the_fit_is_isotonic_regression():
    g = torch.Generator().manual_seed(1)
    scores = torch.randint(0, 40, (3000,), generator=g).float()
    truth = torch.rand(3000, generator=g) < 0.02 * scores
    got = cal.fit(histogram(scores, truth))
    theirs = IsotonicRegression().fit(scores.numpy(), truth.numpy())
    np.testing.assert_allclose(got(scores.numpy()), theirs.predict(scores.numpy()), atol=1e-6)
    assert list(got.values) == sorted(set(got.values))
    assert list(got.edges) == sorted(set(got.edges))


def test_the_fit_is_calibrated_on_its_own_data_and_keeps_order():
    p, truth = made_up()
    scores = 7 * p.log() - 3  # any monotone map of the probability
    h = histogram(scores, truth)
    fitted = cal.fit(h)
    assert len(fitted.edges) <= 2 * cal.STEPS
    assert cal.reliability(h, fitted).ece < 1e-3
    other, answer = made_up(seed=5)
    fresh = cal.reliability(histogram(7 * other.log() - 3, answer), fitted)
    assert fresh.ece < 0.03
    assert fresh.skill > 0.3
    below, above = fitted(np.array([-1e9, 1e9]))
    assert (below, above) == (fitted.values[0], fitted.values[-1])
    for one_kind in (torch.ones_like(truth), torch.zeros_like(truth)):
        with pytest.raises(ValueError, match="inside and outside of lesions"):
            cal.fit(histogram(scores, one_kind))


def curve_by_hand(losses):
    return [sum(losses[:k]) / k for k in range(1, len(losses) + 1)]


def test_aurc_is_the_mean_over_coverages():
    rng = np.random.default_rng(0)
    u = rng.permutation(50).astype(np.float32)
    wrong = rng.random(50) < u / 60
    h = histogram(torch.from_numpy(u), torch.from_numpy(wrong))
    risks = curve_by_hand(wrong[np.argsort(u)].astype(float))
    assert cal.aurc(h) == pytest.approx(np.mean(risks))
    curve = cal.risk_coverage(h)
    np.testing.assert_allclose(curve.risk, risks)
    np.testing.assert_allclose(curve.coverage, np.arange(1, 51) / 50)


def test_aurc_of_ties_is_the_mean_over_their_orders():
    u = torch.tensor([0.0, 0.0, 1.0, 1.0, 1.0, 2.0])
    wrong = torch.tensor([0, 1, 0, 1, 1, 0]).bool()
    areas = []
    for first in permutations([0, 1]):
        for second in permutations([2, 3, 4]):
            order = [*first, *second, 5]
            areas.append(np.mean(curve_by_hand(wrong.numpy()[order].astype(float))))
    assert cal.aurc(histogram(u, wrong)) == pytest.approx(np.mean(areas))
    flat = histogram(torch.zeros(6), wrong)
    assert cal.aurc(flat) == pytest.approx(0.5)  # knows nothing: the error rate itself


def test_aurc_rewards_knowing_and_has_limits():
    wrong = torch.arange(100) >= 80
    u = torch.arange(100).float()
    best, worst = (cal.aurc(histogram(a, wrong)) for a in (u, -u))
    knows_nothing = cal.aurc(histogram(torch.zeros(100), wrong))
    assert best < knows_nothing < worst
    assert knows_nothing == pytest.approx(0.2)
    assert cal.aurc(histogram(u, torch.zeros(100, dtype=torch.bool))) == 0
    assert math.isnan(cal.aurc(total([])))
    assert cal.risk_coverage(total([])) is None
    assert cal.aurc(histogram(u.exp().float().clamp(max=1e30), wrong)) <= knows_nothing
