"""Thresholds by findings per healthy volume: the rule by brute force, and its promise."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import ndimage

from volumediff.anomaly.baselines import Smoothing
from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.operating_point import largest_findings, left_out
from volumediff.anomaly.post import MinComponent
from volumediff.anomaly.threshold import FindingsPerVolume, Fixed, HealthyFPR
from volumediff.calibration.collect_maps import fit
from volumediff.contracts.scenes import example
from volumediff.metrics.detection import histogram, rates, threshold_at_fpr, total
from volumediff.metrics.superlevel import CountByThreshold, upper_part

SPACING = (1.0, 1.0, 1.0)
LEAST = 3  # voxels of 0.001 ml


def maps(n, *, seed, shape=(12, 12, 12)):
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(n):
        a = ndimage.gaussian_filter(rng.normal(size=shape), 1.0) * rng.lognormal(sigma=0.3)
        found.append(torch.from_numpy(a.astype(np.float32))[None, None])
    return found


def calibrated(arrays):
    everywhere = torch.ones_like(arrays[0], dtype=torch.bool)
    upper = [upper_part(a, foreground=everywhere, spacing_mm=SPACING) for a in arrays]
    each = tuple(histogram(a, foreground=everywhere) for a in arrays)
    ml = LEAST / 1000
    counts = tuple(part.steps(ml) for part in upper)
    scores = (0.0,) * len(arrays)
    return Calibration(
        "x", {}, total(each), scores, each=each, finding_ml=ml, upper=tuple(upper), counts=counts
    )


def findings(a, threshold):
    labels, n = ndimage.label(a.numpy()[0, 0] > threshold, structure=np.ones((3, 3, 3)))
    return int((np.bincount(labels.ravel(), minlength=n + 1)[1:] >= LEAST).sum())


@pytest.mark.parametrize(("rate", "affected"), [(1.0, 1.0), (1.0, 0.5), (0.4, 0.3), (2.0, 1.0)])
def test_the_threshold_is_the_lowest_that_meets_the_conditions(rate, affected):
    """Every value of the maps is tried, from the highest down, with scipy."""
    arrays = maps(9, seed=1)
    rule = FindingsPerVolume(rate=rate, affected=affected, share=0.05)
    got = rule(calibrated(arrays))
    lowest = max(threshold_at_fpr(h, 0.05) for h in calibrated(arrays).each)
    worst, expected = np.zeros(9), lowest
    values = np.unique(np.concatenate([a.numpy().ravel() for a in arrays]))[::-1]
    for previous, t in pairwise(values):
        worst = np.maximum(worst, [min(findings(a, float(t)), 3) for a in arrays])
        bad = (worst.sum() + 3) / 10 > rate or ((worst >= 1).sum() + 1) / 10 > affected
        if bad or t < lowest:
            expected = max(float(previous), lowest)
            break
    assert got == expected
    if (rate, affected) == (1.0, 1.0):
        assert got > lowest, "the findings decide, not the share"


def test_a_rate_decides_only_where_no_other_condition_asks_for_more():
    found = calibrated(maps(9, seed=1))
    assert FindingsPerVolume(rate=0.4, affected=1.0).rate_decides(found)
    for inert in (
        FindingsPerVolume(rate=3.0, affected=0.2),
        FindingsPerVolume(rate=9.0, affected=1.0, share=0.001),
    ):
        assert not inert.rate_decides(found)
        assert replace(inert, rate=99.0)(found) == inert(found)


def test_findings_that_join_or_vanish_below_still_count():
    """By hand: one volume has a finding from 10 down to 9, the other from 8 down."""
    first = CountByThreshold(np.array([10.0, 9.0]), np.array([1, 0]), floor=0.0)
    second = CountByThreshold(np.array([8.0]), np.array([1]), floor=0.0)
    rule = FindingsPerVolume(rate=0.7, affected=1.0, limit=1)  # (2 + 1) / 3 is above the rate
    assert rule._by_findings((first, second)) == 8.0
    assert rule._by_findings((first, first)) == 10.0
    assert replace(rule, rate=1.0)._by_findings((first, second)) == -np.inf


def test_new_healthy_volumes_keep_the_promise():
    rule, many = FindingsPerVolume(share=0.05), maps(15 * 40, seed=2, shape=(9, 9, 9))
    loss, any_at_all = [], []
    for k in range(40):
        *known, new = many[15 * k : 15 * (k + 1)]
        count = findings(new, rule(calibrated(known)))
        loss.append(min(count, rule.limit))
        any_at_all.append(count > 0)
    assert 0.3 < np.mean(loss) <= 1.0
    assert np.mean(any_at_all) <= 0.5 + 0.15  # two standard errors of 40 volumes


def test_one_large_blob_does_not_pass():
    """A smooth map has one component at every threshold; the share stops it."""
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 12)] * 3, indexing="ij"))
    hill = torch.from_numpy(-(grid**2).sum(0).astype(np.float32))[None, None]
    arrays = [hill + 0.01 * i for i in range(9)]
    got = FindingsPerVolume(affected=1.0)(calibrated(arrays))
    marked = [float((a > got).float().mean()) for a in arrays]
    assert max(marked) <= 0.02
    assert max(marked) > 0


def test_small_samples_are_refused_with_the_number_that_is_enough():
    few = calibrated(maps(4, seed=3))
    with pytest.raises(ValueError, match=r"at least 5 healthy .* got 4; add volumes"):
        FindingsPerVolume()(few)
    assert FindingsPerVolume(min_volumes=2)(few) is not None
    with pytest.raises(ValueError, match="at least 29"):
        FindingsPerVolume(rate=0.1)(few)
    assert FindingsPerVolume(rate=0.1).least_volumes == 29
    assert FindingsPerVolume()(None) is None
    for wrong in ({"rate": 0.0}, {"affected": 0.0}, {"share": 0.1}, {"limit": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FindingsPerVolume(**wrong)


def test_each_volume_is_left_out_in_turn():
    arrays = maps(8, seed=4)
    calibration = calibrated(arrays)
    for rule in (FindingsPerVolume(share=0.05), HealthyFPR(rate=0.01)):
        got = left_out(rule, calibration)
        voxels, counts = [], []
        for i, a in enumerate(arrays):
            t = rule(calibrated(arrays[:i] + arrays[i + 1 :]))
            counts.append(findings(a, t))
            voxels.append(rates(histogram(a), t).fpr)
        assert got.volumes == 8
        assert got.findings == pytest.approx(np.mean(counts))
        assert got.affected == pytest.approx(np.mean(np.array(counts) > 0))
        assert got.voxels == pytest.approx(np.mean(voxels))
    assert left_out(HealthyFPR(rate=0.3), calibration) is None, "below what was kept"
    assert left_out(FindingsPerVolume(rate=3 / 9), calibration) is None, "seven are too few"
    assert left_out(Fixed(1.0), calibration) is None
    assert left_out(HealthyFPR(), None) is None


def test_largest_findings_of_healthy_volumes():
    arrays = maps(6, seed=5)
    calibration = calibrated(arrays)
    t = FindingsPerVolume(min_volumes=5)(calibration)
    got = largest_findings(calibration, t)
    assert got.shape == (6, 3)
    for row, a in zip(got, arrays, strict=True):
        if findings(a, t) == 0:
            assert np.isneginf(row).all()
        else:
            assert t < row[0] <= float(a.max()) + 1e-6
    assert np.isneginf(largest_findings(calibration, 1e6)).all()
    assert largest_findings(calibration, -1e6) is None
    assert largest_findings(None, t) is None


def test_a_calibration_keeps_its_findings(tmp_path):
    calibration = calibrated(maps(6, seed=6))
    calibration.save(tmp_path / "c.safetensors")
    again = Calibration.load(tmp_path / "c.safetensors")
    rule = FindingsPerVolume()
    assert rule(again) == rule(calibration)
    assert left_out(rule, again) == left_out(rule, calibration)
    t = rule(calibration)
    np.testing.assert_array_equal(largest_findings(again, t), largest_findings(calibration, t))
    kept = [len(part.values) for part in again.upper]
    assert 0 < max(kept) <= 0.05 * 12**3, "compact: the upper part, not the maps"


def test_the_smallest_finding_is_one_setting():
    """Calibration, mask and result take it from the post step, and another one is another fit."""
    method = Smoothing(sigma_mm=3.0, post=(MinComponent(0.05),))
    healthy = [example(i, lesion=0.0) for i in range(8)]
    calibration = fit(method, None, healthy, seed=1)
    assert calibration.finding_ml == method.finding_ml == 0.05
    other = replace(method, post=(MinComponent(0.2),))
    assert other.fingerprint != method.fingerprint
    sick = example(20)
    found = method.localize(
        None,
        sick.x,
        foreground=sick.foreground,
        spacing_mm=sick.spacing_mm,
        key=1,
        calibration=calibration,
    )
    assert found.finding_ml == 0.05
    d, h, w = sick.spacing_mm
    labels, n = ndimage.label(found.mask.numpy()[0, 0], structure=np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel())[1:] * d * h * w / 1000
    assert n
    assert sizes.min() >= 0.05 * (1 - 1e-6)
