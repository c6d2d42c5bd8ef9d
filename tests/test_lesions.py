"""Lesion-wise figures: counted by hand, by MONAI, and by brute force over thresholds."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from volumediff.metrics import lesions as les

UNIT = (1.0, 1.0, 1.0)


def grid(*points, shape=(8, 8, 8)):
    m = torch.zeros(shape, dtype=torch.bool)
    for p in points:
        m[p] = True
    return m


def test_lesions_by_hand():
    # Two lesions: a corner-connected pair (one under 26 neighbours) and a bar of four.
    truth = grid((0, 0, 0), (1, 1, 1), (5, 5, 2), (5, 5, 3), (5, 5, 4), (5, 5, 5))
    # The mask hits one voxel of the bar, and has three components elsewhere.
    mask = grid((5, 5, 5), (5, 6, 6), (7, 0, 0), (0, 7, 7), (1, 6, 2))
    scores = torch.zeros(truth.shape)
    scores[5, 5, 5], scores[5, 6, 6] = 0.5, 0.9  # one candidate, its peak beside the lesion
    scores[7, 0, 0], scores[0, 7, 7], scores[1, 6, 2] = 0.7, 0.6, 0.8
    got = les.lesions(mask, truth, spacing_mm=(10.0, 2.0, 3.0), scores=scores)
    assert got.volumes_ml == pytest.approx((0.12, 0.24))
    assert got.recalls == (0.0, 0.25)
    assert got.detected == (False, True)
    assert got.false_positives == 3
    assert got.scores == pytest.approx((-math.inf, 0.9))
    assert sorted(got.false_scores) == pytest.approx([0.6, 0.7, 0.8])
    strict = les.lesions(mask, truth, spacing_mm=UNIT, share=0.25, scores=scores)
    assert strict.detected[1] is False
    assert strict.scores[1] == -math.inf
    assert strict.false_positives == 3  # it touches the lesion: not found, but no false alarm
    assert les.lesions(mask, truth, spacing_mm=UNIT, share=0.24).detected[1] is True
    clean = les.lesions(mask, grid(), spacing_mm=UNIT)
    assert clean == les.Lesions((), (), (), 4)
    with pytest.raises(ValueError, match="share: expected a number"):
        les.lesions(mask, truth, spacing_mm=UNIT, share=1.0)


def test_figures_pool_the_lesions():
    one = les.Lesions((0.05, 0.5, 20.0), (0.0, 0.5, 1.0), (False, True, True), 2)
    clean = les.Lesions((), (), (), 3)
    cases = [one, clean]
    assert les.detection_rate(cases) == pytest.approx(2 / 3)
    assert les.lesion_recall(cases) == 0.5
    assert les.false_positives(cases) == 2.5
    assert les.lesion_f1(cases) == pytest.approx(4 / (2 + 3 + 5))
    tiny, small, medium, large = les.stratified(cases)
    assert (tiny.low_ml, tiny.high_ml, tiny.lesions, tiny.rate, tiny.recall) == (0, 0.1, 1, 0, 0)
    assert (small.lesions, small.detected, small.rate, small.recall) == (1, 1, 1.0, 0.5)
    assert medium.lesions == 0
    assert math.isnan(medium.rate)
    assert math.isnan(medium.recall)
    assert (large.low_ml, large.high_ml, large.rate) == (10, math.inf, 1.0)
    on_the_edge = les.Lesions((0.1,), (1.0,), (True,), 0)
    assert [s.lesions for s in les.stratified([on_the_edge])] == [0, 1, 0, 0]
    assert math.isnan(les.detection_rate([clean]))
    assert math.isnan(les.lesion_recall([clean]))
    assert math.isnan(les.lesion_f1([clean]))
    assert math.isnan(les.false_positives([]))


def test_matching_is_that_of_all_pairs():
    # Brute force: every lesion against every candidate, as sets of voxels.
    rng = np.random.default_rng(5)
    for _ in range(10):
        truth, mask = (torch.from_numpy(rng.random((6, 7, 5)) < 0.06) for _ in range(2))
        scores = torch.from_numpy(rng.normal(size=truth.shape).astype(np.float32))
        got = les.lesions(mask, truth, spacing_mm=UNIT, scores=scores)
        wholes = [ndimage.label(m, structure=np.ones((3, 3, 3))) for m in (truth, mask)]
        (ys, n), (ms, k) = wholes
        peak = [scores.numpy()[ms == j].max() for j in range(1, k + 1)]
        touched = [
            [j for j in range(1, k + 1) if ((ys == i) & (ms == j)).any()] for i in range(1, n + 1)
        ]
        assert got.detected == tuple(bool(js) for js in touched)
        expected = [max((peak[j - 1] for j in js), default=-np.inf) for js in touched]
        assert got.scores == pytest.approx(expected)
        free = set(range(1, k + 1)) - {j for js in touched for j in js}
        assert got.false_scores == pytest.approx([peak[j - 1] for j in sorted(free)])


def made_up(rng, count=8):
    cases = []
    for _ in range(count):
        n, wrong = int(rng.integers(0, 4)), int(rng.integers(0, 12))
        scores = np.where(rng.random(n) < 0.8, rng.normal(1, 1, n), -np.inf)
        cases.append(
            les.Lesions(
                tuple([1.0] * n),
                tuple([1.0] * n),
                tuple(np.isfinite(scores).tolist()),
                wrong,
                tuple(scores.tolist()),
                rng.normal(0, 1, wrong),
            )
        )
    return cases


@pytest.mark.parametrize("seed", range(4))
def test_froc_is_that_of_monai(seed):
    from monai.metrics import compute_froc_curve_data, compute_froc_score

    cases = made_up(np.random.default_rng(seed))
    true = np.array([s for c in cases for s in c.scores])
    false = np.array([s for c in cases for s in c.false_scores])
    # MONAI leaves the lowest score out, so that it gets one more that is lower than all; its
    # scores are probabilities, 0 for a lesion without candidate.
    shifted = np.where(np.isfinite(true), 1 / (1 + np.exp(-true)), 0.0)
    wrong = np.append(1 / (1 + np.exp(-false)), -1.0)
    positive = shifted[shifted > 0]
    fps, sensitivity = compute_froc_curve_data(wrong, positive, len(true), len(cases))
    curve = les.froc(cases)
    x = np.linspace(0.01, 12, 500)  # beside the operating points, whose ends MONAI may leave out
    mine = np.interp(x, curve.false_positives, curve.sensitivity)
    np.testing.assert_allclose(mine, np.interp(x, fps[::-1], sensitivity[::-1]))
    rates = (0.2, 0.5, 1.0, 3.3)
    expected = compute_froc_score(fps, sensitivity, rates)
    assert les.froc_score(cases, rates=rates) == pytest.approx(expected)


def test_froc_by_thresholds():
    # Two volumes, three lesions, one never found; a lesion and a false positive at 0.5.
    a = les.Lesions(
        (1.0, 1.0), (1.0, 0.0), (True, False), 2, (0.9, -np.inf), np.array([0.95, 0.2])
    )
    b = les.Lesions((1.0,), (1.0,), (True,), 1, (0.5,), np.array([0.5]))
    curve = les.froc([a, b])
    np.testing.assert_allclose(curve.false_positives, [0, 0.5, 0.5, 0.5, 1.0, 1.5])
    np.testing.assert_allclose(curve.sensitivity, [0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3])
    points = set(zip(curve.false_positives, curve.sensitivity, strict=True))
    for threshold in (0.9, 0.5):  # those of the lesions are operating points
        fp = sum(s >= threshold for c in (a, b) for s in c.false_scores) / 2
        assert (fp, sum(s >= threshold for c in (a, b) for s in c.scores) / 3) in points
    got = les.froc_score([a, b], rates=(0.5, 0.75, 8.0))
    assert got == pytest.approx((1 / 3 + 1 / 2 + 2 / 3) / 3)

    def moved(c):  # only the order of the scores matters
        scores = tuple(float(np.exp(s)) if s > -np.inf else s for s in c.scores)
        return replace(c, scores=scores, false_scores=np.exp(c.false_scores))

    assert les.froc_score([moved(a), moved(b)]) == pytest.approx(les.froc_score([a, b]))


def test_froc_needs_scores_and_lesions():
    without = les.Lesions((1.0,), (1.0,), (True,), 0)
    assert les.froc([without]) is None
    assert math.isnan(les.froc_score([without]))
    assert les.froc([les.Lesions((), (), (), 1, (), np.array([0.3]))]) is None
    unscored = les.Lesions((), (), (), 3)  # nobody knows where its false positives belong
    perfect = les.Lesions((1.0,), (1.0,), (True,), 0, (3.0,))
    assert les.froc_score([perfect]) == 1
    assert les.froc([perfect, unscored]) is None
