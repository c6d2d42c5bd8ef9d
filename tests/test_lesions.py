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


def simple(
    *, volumes_ml=(), found=(), candidates=None, false=0, marked_ml=0.0, scores=(), wrong=()
):
    """Lesions that are found by exactly their own candidate, or not at all."""
    ious = tuple(float(f) for f in found)
    return les.Lesions(
        tuple(volumes_ml),
        ious,
        ious,
        tuple(0.0 if f else 1.0 for f in found),
        0,
        0,
        sum(found) + false if candidates is None else candidates,
        false,
        marked_ml,
        tuple(scores),
        np.array(wrong, dtype=float),
    )


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
    assert got.ious == pytest.approx((0.0, 1 / 5))  # 1 of 4 + 2 - 1
    assert got.recalls == (0.0, 0.25)
    assert got.outside == (1.0, 0.5)
    assert got.by_iou == got.by_recall == (False, True)
    assert (got.candidates, got.false_positives, got.merged, got.split) == (4, 3, 0, 0)
    assert got.marked_ml == pytest.approx(5 * 0.06)
    assert got.scores == pytest.approx((-math.inf, 0.9))
    assert sorted(got.false_scores) == pytest.approx([0.6, 0.7, 0.8])
    clean = les.lesions(mask, grid(), spacing_mm=(10.0, 10.0, 10.0))
    assert clean == les.Lesions((), (), (), (), 0, 0, 4, 4, 5.0)
    assert clean.excess_ml == 5.0  # nothing may be marked in a healthy volume


def test_a_candidate_that_is_mostly_elsewhere_finds_nothing():
    truth = grid((4, 4, 0), (4, 4, 1), (4, 4, 2))
    row = [(4, 4, k) for k in range(8)] + [(3, 4, 6), (3, 4, 7)]  # ten voxels, three of them right
    edge = les.lesions(grid(*row), truth, spacing_mm=UNIT)
    assert edge.outside == pytest.approx((0.7,))
    assert edge.by_recall == (True,)
    assert edge.false_positives == 0
    over = les.lesions(grid(*row, (3, 4, 5)), truth, spacing_mm=UNIT)
    assert over.recalls == (1.0,)
    assert over.by_recall == (False,)
    assert over.false_positives == 1
    assert over.by_iou == (True,)  # 3 of 11: the two ways are two figures


def test_merged_and_split():
    # One candidate through two lesions; the third lesion has two candidates.
    truth = grid(*[(1, 1, k) for k in (0, 1, 3, 4)], *[(6, 6, k) for k in range(5)])
    mask = grid(*[(1, 1, k) for k in range(5)], (6, 6, 0), (6, 6, 3), (6, 6, 4))
    got = les.lesions(mask, truth, spacing_mm=UNIT)
    assert (got.merged, got.split, got.candidates, got.false_positives) == (2, 1, 3, 0)
    # one candidate is matched once: two fifths for one of the merged lesions, none for the other
    assert got.ious == pytest.approx((2 / 5, 0.0, 2 / 5))
    assert got.by_recall == (True, True, True)
    assert les.lesion_f1([got]) == pytest.approx(2 * 2 / (3 + 3))
    assert les.merged([got, simple()]) == 1.0
    assert les.split([got, simple()]) == 0.5


def test_associated_changes_are_neither_hit_nor_miss():
    truth = grid((4, 4, 4), (4, 4, 5))
    oedema = grid((4, 4, 3), (4, 4, 6), (4, 4, 7), (0, 0, 0), (0, 0, 1), (4, 4, 4))
    # the candidate spreads over the oedema; one more lies in oedema by half, one by less
    mask = grid(*[(4, 4, k) for k in range(3, 8)], (0, 0, 1), (0, 0, 2), (0, 7, 7))
    got = les.lesions(mask, truth, spacing_mm=(10.0, 10.0, 10.0), ignored=oedema)
    assert got.volumes_ml == pytest.approx((2.0,))  # lesion where both are marked
    assert got.ious == (1.0,)
    assert (got.candidates, got.false_positives) == (2, 1)
    assert got.marked_ml == pytest.approx(3.0)
    without = les.lesions(mask, truth, spacing_mm=(10.0, 10.0, 10.0))
    assert without.ious == pytest.approx((2 / 5,))
    assert (without.candidates, without.false_positives) == (3, 2)


def test_figures_pool_the_lesions():
    one = simple(volumes_ml=(0.05, 0.5, 20.0), found=(False, True, True), false=2, marked_ml=70.0)
    clean = simple(false=3, marked_ml=8.0)
    cases = [one, clean]
    assert les.found_by_iou(cases) == les.found_by_recall(cases) == pytest.approx(2 / 3)
    assert les.false_positives(cases) == 2.5
    assert les.lesion_f1(cases) == pytest.approx(4 / (2 + 3 + 5))
    assert one.excess_ml == pytest.approx(70 - 3 * 20.55)
    assert les.excess_ml(cases) == pytest.approx((70 - 3 * 20.55 + 8) / 2)
    assert les.volume_matched_false_positives(cases) == pytest.approx(
        (70 - 3 * 20.55 + 8) / 2 / (20.55 / 3)
    )
    tiny, small, medium, large = les.stratified(cases)
    assert (tiny.low_ml, tiny.high_ml, tiny.lesions, tiny.by_iou) == (0, 0.1, 1, 0)
    assert (small.lesions, small.by_iou, small.by_recall) == (1, 1, 1)
    assert medium.lesions == 0
    assert (large.low_ml, large.high_ml, large.by_recall) == (10, math.inf, 1)
    on_the_edge = simple(volumes_ml=(0.1,), found=(True,))
    assert [s.lesions for s in les.stratified([on_the_edge])] == [0, 1, 0, 0]
    for nothing in (les.found_by_iou, les.found_by_recall, les.lesion_f1):
        assert math.isnan(nothing([clean]))
    assert math.isnan(les.volume_matched_false_positives([clean]))
    for nothing in (les.false_positives, les.merged, les.split, les.excess_ml):
        assert math.isnan(nothing([]))


def brute_force(mask, truth, ignored, scores):
    """Every lesion against every candidate, as sets of voxels."""
    wholes = []
    for m in (truth, mask):
        labels, n = ndimage.label(m, structure=np.ones((3, 3, 3)))
        wholes.append([set(zip(*np.nonzero(labels == i), strict=True)) for i in range(1, n + 1)])
    lesions, every = wholes
    right = set().union(*lesions)
    void = set(zip(*np.nonzero(ignored), strict=True)) - right
    every = [c for c in every if c & right or len(c & void) < len(c) / 2]
    peaks = [max(scores[v] for v in c) for c in every]
    every = [c - void for c in every]
    false = [len(c - right) > 0.7 * len(c) for c in every]
    touching = [[j for j, c in enumerate(every) if c & lesion] for lesion in lesions]
    unions = [set().union(*(every[j] for j in js)) for js in touching]
    recalls = [len(lesion & u) / len(lesion) for lesion, u in zip(lesions, unions, strict=True)]
    outside = [len(u - right) / len(u) if u else 1.0 for u in unions]
    ious = [0.0] * len(lesions)
    pairs = [
        (-len(lesion & c) / len(lesion | c), i, j)
        for i, lesion in enumerate(lesions)
        for j, c in enumerate(every)
        if lesion & c
    ]
    free_l, free_c = set(range(len(lesions))), set(range(len(every)))
    for iou, i, j in sorted(pairs):
        if i in free_l and j in free_c:
            ious[i] = -iou
            free_l.remove(i)
            free_c.remove(j)
    found = [
        max(peaks[j] for j in js if not false[j]) if r >= 0.1 and o <= 0.7 else -np.inf
        for js, r, o in zip(touching, recalls, outside, strict=True)
    ]
    return {
        "ious": ious,
        "recalls": recalls,
        "outside": outside,
        "merged": sum(any(j in b for j in a for b in touching if b is not a) for a in touching),
        "split": sum(len(js) > 1 for js in touching),
        "candidates": len(every),
        "false_positives": sum(false),
        "marked_ml": sum(len(c) for c in every) / 1000,
        "scores": found,
        "false_scores": [p for p, f in zip(peaks, false, strict=True) if f],
    }


@pytest.mark.parametrize("seed", range(10))
def test_matching_is_that_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    noise = [rng.random((7, 8, 6)) for _ in range(3)]
    shares = (0.08, 0.12, 0.15) if seed % 2 else (0.05, 0.3, 0.2)
    truth, mask, ignored = (n < share for n, share in zip(noise, shares, strict=True))
    scores = rng.normal(size=truth.shape).astype(np.float32)
    got = les.lesions(
        *(torch.from_numpy(m) for m in (mask, truth)),
        spacing_mm=UNIT,
        ignored=torch.from_numpy(ignored),
        scores=torch.from_numpy(scores),
    )
    for name, value in brute_force(mask, truth, ignored, scores).items():
        assert getattr(got, name) == pytest.approx(value), name


def test_candidates_are_the_components_that_findings_are():
    from volumediff.findings.components import components

    mask = np.random.default_rng(1).random((9, 9, 9)) < 0.1
    got = les.lesions(torch.from_numpy(mask), grid(shape=mask.shape), spacing_mm=UNIT)
    assert got.candidates == len(components(mask)) > 5


def test_a_mask_over_everything_is_worse_than_a_modest_one_on_every_figure():
    truth = torch.zeros((20, 20, 20), dtype=torch.bool)
    truth[3:7, 3:7, 3:7] = truth[12:15, 12:15, 12:15] = True
    modest = torch.zeros_like(truth)
    modest[4:8, 4:8, 4:8] = modest[13:16, 12:15, 12:15] = True
    cases = {
        name: [
            les.lesions(m, y, spacing_mm=UNIT, scores=m.float())
            for m, y in ((mask, truth), (quiet, torch.zeros_like(truth)))
        ]
        for name, mask, quiet in (
            ("flood", torch.ones_like(truth), torch.ones_like(truth)),
            ("modest", modest, torch.zeros_like(truth)),
        )
    }
    for better in (les.found_by_iou, les.found_by_recall, les.lesion_f1, les.froc_score):
        assert better(cases["modest"]) > better(cases["flood"]) == 0, better.__name__
    for worse in (
        les.false_positives,
        les.excess_ml,
        les.volume_matched_false_positives,
        les.merged,
    ):
        assert worse(cases["flood"]) > worse(cases["modest"]) == 0, worse.__name__
    assert les.split(cases["flood"]) == les.split(cases["modest"]) == 0
    assert les.volume_matched_false_positives(cases["flood"]) > 100  # one component each
    assert all(s.by_iou == s.by_recall == 0 for s in les.stratified(cases["flood"]))
    assert sum(s.by_iou for s in les.stratified(cases["modest"])) == 2


def made_up(rng, count=8):
    cases = []
    for _ in range(count):
        n, wrong = int(rng.integers(0, 4)), int(rng.integers(0, 12))
        scores = np.where(rng.random(n) < 0.8, rng.normal(1, 1, n), -np.inf)
        cases.append(
            simple(
                volumes_ml=[1.0] * n,
                found=np.isfinite(scores).tolist(),
                false=wrong,
                scores=scores.tolist(),
                wrong=rng.normal(0, 1, wrong),
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
    a = simple(
        volumes_ml=(1.0, 1.0),
        found=(True, False),
        false=2,
        scores=(0.9, -np.inf),
        wrong=(0.95, 0.2),
    )
    b = simple(volumes_ml=(1.0,), found=(True,), false=1, scores=(0.5,), wrong=(0.5,))
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
    without = simple(volumes_ml=(1.0,), found=(True,))
    assert les.froc([without]) is None
    assert math.isnan(les.froc_score([without]))
    assert les.froc([simple(false=1, wrong=(0.3,))]) is None
    unscored = simple(false=3)  # nobody knows where its false positives belong
    perfect = simple(volumes_ml=(1.0,), found=(True,), scores=(3.0,))
    assert les.froc_score([perfect]) == 1
    assert les.froc([perfect, unscored]) is None
