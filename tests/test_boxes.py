"""Boxes: counted voxel by voxel, and against MONAI and scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from volumediff.metrics import boxes as bx


def drawn(rng, n, size=9):
    low = rng.integers(0, size - 3, (n, 3))
    return np.concatenate([low, low + rng.integers(1, 4, (n, 3))], axis=1)


def voxels(box, size=12):
    mask = np.zeros((size, size, size), bool)
    d0, h0, w0, d1, h1, w1 = box
    mask[d0:d1, h0:h1, w0:w1] = True
    return mask


def test_iou_and_giou_count_voxels():
    rng = np.random.default_rng(0)
    a, b = drawn(rng, 7), drawn(rng, 5)
    overlap, general = bx.iou(a, b), bx.giou(a, b)
    for i, p in enumerate(a):
        for j, q in enumerate(b):
            both, either = voxels(p) & voxels(q), voxels(p) | voxels(q)
            at = np.argwhere(either)
            around = np.prod(at.max(axis=0) - at.min(axis=0) + 1)
            iou = both.sum() / either.sum()
            assert overlap[i, j] == pytest.approx(iou)
            assert general[i, j] == pytest.approx(iou - (around - either.sum()) / around)


def test_iou_and_giou_are_those_of_monai():
    from monai.data import box_utils

    rng = np.random.default_rng(1)
    a, b = drawn(rng, 30), drawn(rng, 20)
    p, q = (torch.from_numpy(x).float() for x in (a, b))
    np.testing.assert_allclose(bx.iou(a, b), box_utils.box_iou(p, q), atol=1e-6)
    np.testing.assert_allclose(bx.giou(a, b), box_utils.box_giou(p, q), atol=1e-6)
    np.testing.assert_allclose(np.diag(bx.iou(a, a)), 1)
    np.testing.assert_allclose(bx.giou(a, b), bx.giou(b, a).T)


def test_boxes_of_components():
    mask = torch.zeros(6, 7, 8, dtype=torch.bool)
    mask[0, 0, 0] = mask[1, 1, 1] = True  # one component under 26 neighbours
    mask[4:6, 2:5, 3] = True
    scores = torch.zeros(mask.shape)
    scores[1, 1, 1], scores[5, 4, 3], scores[3, 3, 3] = 2, 5, 9
    found = bx.boxes(mask, scores=scores)
    np.testing.assert_array_equal(found.corners, [[0, 0, 0, 2, 2, 2], [4, 2, 3, 6, 5, 4]])
    np.testing.assert_array_equal(found.scores, [2, 5])
    np.testing.assert_array_equal(bx.boxes(mask).scores, [1, 1])
    inside = bx.inside(found, (6, 7, 8))
    assert int(inside.sum()) == 8 + 6
    assert bool((inside | ~mask).all())
    none = bx.boxes(torch.zeros(2, 2, 2, dtype=torch.bool), scores=torch.zeros(2, 2, 2))
    assert none.corners.shape == (0, 6)
    assert none.scores.shape == (0,)


def test_matching_by_hand():
    truth = bx.Boxes(np.array([[0, 0, 0, 4, 4, 4], [6, 0, 0, 8, 2, 2]]), np.ones(2))
    found = bx.Boxes(
        np.array(
            [
                [0, 0, 0, 4, 4, 2],  # IoU 1/2 with the first
                [0, 0, 0, 4, 4, 4],  # IoU 1 with it, but scores lower
                [6, 0, 0, 8, 2, 4],  # IoU 1/2 with the second
                [9, 9, 9, 10, 10, 10],
            ]
        ),
        np.array([0.9, 0.8, 0.7, 0.6]),
    )
    got = bx.match(found, truth, ious=(0.1, 0.5, 0.75))
    np.testing.assert_array_equal(
        got.hits,
        [[True, False, True, False], [True, False, True, False], [False, True] + [False] * 2],
    )
    assert bx.recall([got], at=1) == 1
    assert bx.precision([got], at=1) == 0.5
    assert bx.average_precision([got], at=1) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert bx.average_precision([got], at=2) == pytest.approx(0.5 * 1 / 2)
    np.testing.assert_allclose(got.nearest, [1, 0.5])


@pytest.mark.parametrize("seed", range(3))
def test_matching_and_ap_are_those_of_the_libraries(seed):
    from monai.apps.detection.metrics.matching import matching_batch
    from monai.data.box_utils import box_iou

    rng = np.random.default_rng(seed)
    pairs = []
    for _ in range(6):
        true = drawn(rng, int(rng.integers(0, 5)))
        near = true + rng.integers(0, 2, true.shape) * [0, 0, 0, 1, 1, 1]
        corners = np.concatenate([near, near, drawn(rng, int(rng.integers(1, 4)))])
        pairs.append(
            (bx.Boxes(corners, rng.random(len(corners))), bx.Boxes(true, np.ones(len(true))))
        )
    ours = [bx.match(f, t) for f, t in pairs]
    theirs = matching_batch(
        iou_fn=lambda a, b: box_iou(a.astype(np.float64), b.astype(np.float64)),
        iou_thresholds=bx.IOUS,
        pred_boxes=[f.corners for f, _ in pairs],
        pred_classes=[np.zeros(len(f.corners), int) for f, _ in pairs],
        pred_scores=[f.scores for f, _ in pairs],
        gt_boxes=[t.corners for _, t in pairs],
        gt_classes=[np.zeros(len(t.corners), int) for _, t in pairs],
    )
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.scores, other[0]["dtScores"])
        np.testing.assert_array_equal(mine.hits, other[0]["dtMatches"] > 0)
    for at in range(len(bx.IOUS)):
        hits = np.concatenate([m.hits[at] for m in ours])
        scores = np.concatenate([m.scores for m in ours])
        # scikit-learn ranks what was found; true boxes that were not found are missing recall
        expected = average_precision_score(hits, scores) * bx.recall(ours, at=at)
        assert bx.average_precision(ours, at=at) == pytest.approx(expected)
        tied = [bx.Matches(np.round(m.scores), m.hits, m.truths, m.nearest) for m in ours]
        expected = average_precision_score(hits, np.round(scores)) * bx.recall(ours, at=at)
        assert bx.average_precision(tied, at=at) == pytest.approx(expected)
        assert bx.average_precision(ours[::-1], at=at) == pytest.approx(
            bx.average_precision(ours, at=at)
        )


def test_nothing_found_and_nothing_to_find():
    none, one = (
        bx.Boxes(np.zeros((0, 6), int), np.zeros(0)),
        bx.Boxes(np.array([[0, 0, 0, 1, 1, 1]]), np.ones(1)),
    )
    missed, alarm = bx.match(none, one), bx.match(one, none)
    assert bx.average_precision([missed], at=0) == 0
    assert bx.recall([missed], at=0) == 0
    assert math.isnan(bx.precision([missed], at=0))
    assert missed.nearest.tolist() == [-1]
    assert bx.precision([alarm], at=0) == 0
    assert math.isnan(bx.recall([alarm], at=0))
    assert math.isnan(bx.average_precision([alarm, bx.match(none, none)], at=0))


def test_only_the_best_of_many_boxes_count():
    truth = bx.Boxes(np.array([[0, 0, 0, 1, 1, 1]]), np.ones(1))
    corners = np.repeat([[5, 5, 5, 6, 6, 6]], 150, axis=0)
    corners[-1] = [0, 0, 0, 1, 1, 1]
    for score, hit in ((150.0, True), (50.5, True), (49.5, False)):
        scores = np.append(np.arange(1.0, 150.0), score)
        got = bx.match(bx.Boxes(corners, scores), truth)
        assert len(got.scores) == bx.LIMIT
        assert bool(got.hits[0].any()) is hit


def test_response_inside_and_outside():
    scores = torch.tensor([1.0, 3.0, 5.0, 7.0, 100.0]).reshape(1, 1, 5)
    box = torch.tensor([False, False, True, True, False]).reshape(1, 1, 5)
    seen = torch.tensor([True, True, True, True, False]).reshape(1, 1, 5)
    got = bx.response(scores, box, foreground=seen)
    assert (got.inside, got.outside, got.ratio, got.energy) == (5, 1, 5, pytest.approx(10 / 12))
    moved = bx.response(3 * scores - 8, box, foreground=seen)
    assert moved.ratio == pytest.approx(got.ratio)
    assert moved.energy == pytest.approx(got.energy)
    flat = bx.response(torch.ones(1, 1, 5), box)
    assert math.isnan(flat.ratio)
    assert math.isnan(flat.energy)
    assert math.isnan(bx.response(scores, ~seen, foreground=seen).inside)
