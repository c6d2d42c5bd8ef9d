"""Metrics of segmentations: MONAI, scikit-learn and brute force as oracles, and closed forms."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from volumediff.metrics import calibration_error
from volumediff.metrics.coherence import Shape, shape_of
from volumediff.metrics.label_agreement import AbsentLabels, label_agreement
from volumediff.metrics.lesions import lesion_f1, lesions
from volumediff.metrics.overlap import overlap
from volumediff.metrics.panoptic import (
    Panoptic,
    instances,
    lesion_counts,
    panoptic,
    panoptic_by_size,
)
from volumediff.metrics.readers import overlaps, reader_agreement
from volumediff.metrics.surfaces import surface_distances, surface_voxels

SHAPE = (18, 15, 12)
SPACINGS = [(1.0, 1.0, 1.0), (0.6, 1.1, 3.0)]


def blob(seed, *, shape=SHAPE, level=0.6):
    """A random smooth mask, some of it at the edge of the volume."""
    field = np.random.default_rng(seed).random(shape)
    return ndimage.uniform_filter(field, 4, mode="wrap") > level - 0.05


def box(low, high, *, shape=SHAPE):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def one_hot(mask):
    return torch.from_numpy(np.stack([~mask, mask])[None].astype(np.float32))


@pytest.mark.parametrize("spacing_mm", SPACINGS)
@pytest.mark.parametrize("seed", range(4))
def test_surface_metrics_equal_monai(seed, spacing_mm):
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    a, b = blob(seed), blob(seed + 100)
    pair, how = (one_hot(a), one_hot(b)), {"spacing": spacing_mm}
    found = surface_distances(a, b, spacing_mm=spacing_mm)
    assert found.hausdorff() == pytest.approx(
        float(compute_hausdorff_distance(*pair, percentile=95, **how)), abs=1e-4
    )
    assert found.hausdorff(100.0) == pytest.approx(
        float(compute_hausdorff_distance(*pair, **how)), abs=1e-4
    )
    assert found.average == pytest.approx(
        float(compute_average_surface_distance(*pair, symmetric=True, **how)), abs=1e-4
    )
    for tolerance in (0.0, 1.1, 2.0):
        assert found.within(tolerance) == pytest.approx(
            float(compute_surface_dice(*pair, [tolerance], **how)), abs=1e-4
        )


@pytest.mark.parametrize("spacing_mm", SPACINGS)
def test_surface_distances_by_brute_force(spacing_mm):
    a, b = blob(7, shape=(8, 7, 6)), blob(8, shape=(8, 7, 6))
    found = surface_distances(a, b, spacing_mm=spacing_mm)
    mine, theirs = (np.argwhere(surface_voxels(m)) * spacing_mm for m in (a, b))
    apart = np.linalg.norm(mine[:, None] - theirs, axis=-1)
    np.testing.assert_allclose(found.to_truth, apart.min(axis=1), atol=1e-9)
    np.testing.assert_allclose(found.to_mask, apart.min(axis=0), atol=1e-9)


def test_a_box_that_is_moved():
    """Two voxels of 3 mm along w: the ends are 6 mm away, most of the sides not at all."""
    truth, mask = box((2, 2, 2), (14, 12, 8)), box((2, 2, 4), (14, 12, 10))
    found = label_agreement(mask, truth, spacing_mm=(1.0, 1.0, 3.0), tolerance_mm=3.0)
    assert found["dice"] == pytest.approx(2 / 3)
    assert found["iou"] == pytest.approx(1 / 2)
    assert found["hd95_mm"] <= 6.0
    assert surface_distances(mask, truth, spacing_mm=(1.0, 1.0, 3.0)).hausdorff(100.0) == 6.0
    assert found["volume_error_ml"] == 0
    assert found["truth_ml"] == pytest.approx(12 * 10 * 6 * 3 / 1000)
    end = 12 * 10  # the outer layer of each box is two voxels away, unless a side is nearer
    near = label_agreement(mask, truth, spacing_mm=(1.0, 1.0, 3.0), tolerance_mm=6.0)
    assert near["nsd"] == 1.0
    assert found["nsd"] < 1.0 - 2 * end / (2 * surface_voxels(truth).sum()) / 4


def test_dice_equals_that_of_localization_and_iou_follows():
    a, b = blob(1), blob(2)
    found = label_agreement(a, b, spacing_mm=(1.0, 1.0, 1.0), tolerance_mm=1.0)
    other = overlap(torch.from_numpy(a), torch.from_numpy(b), spacing_mm=(1.0, 1.0, 1.0))
    assert found["dice"] == pytest.approx(other.dice)
    assert found["precision"] == pytest.approx(other.precision)
    assert found["recall"] == pytest.approx(other.recall)
    assert found["iou"] == pytest.approx(found["dice"] / (2 - found["dice"]))
    assert found["volume_error"] == pytest.approx(abs(a.sum() - b.sum()) / b.sum())


def test_labels_that_are_not_there_follow_the_rules():
    nothing, some = np.zeros(SHAPE, dtype=bool), box((0, 0, 0), (3, 3, 3))
    how = {"spacing_mm": (1.0, 1.0, 2.0), "tolerance_mm": 1.0}
    skipped = label_agreement(nothing, nothing, **how)
    assert all(math.isnan(v) for k, v in skipped.items() if not k.endswith("_ml"))
    perfect = label_agreement(nothing, nothing, **how, rules=AbsentLabels(absent="one"))
    assert [perfect[k] for k in ("dice", "iou", "nsd", "hd95_mm")] == [1, 1, 1, 0]
    for pair in ((nothing, some), (some, nothing)):
        missed = label_agreement(*pair, **how)
        assert [missed[k] for k in ("dice", "iou", "nsd")] == [0, 0, 0]
        assert missed["hd95_mm"] == pytest.approx(math.hypot(18, 15, 24))
        left_out = label_agreement(*pair, **how, rules=AbsentLabels(missed="skip"))
        assert math.isnan(left_out["assd_mm"])
        assert left_out["dice"] == 0
    with pytest.raises(ValueError, match="absent: expected skip or one, got 'zero'"):
        AbsentLabels(absent="zero")


@pytest.mark.parametrize("seed", range(5))
def test_lesion_f1_equals_that_of_localization(seed):
    a, b = blob(seed, level=0.62), blob(seed, level=0.6) | blob(seed + 50, level=0.68)
    found = lesion_counts(instances(a, b, spacing_mm=(1.0, 1.0, 1.0)))
    whole = lesions(torch.from_numpy(a), torch.from_numpy(b), spacing_mm=(1.0, 1.0, 1.0))
    assert found.tp + found.fn == len(whole.volumes_ml)
    assert found.tp + found.fp == whole.candidates
    assert found.rq == pytest.approx(lesion_f1([whole]))


def test_panoptic_quality_of_three_lesions():
    """One outlined with IoU 3/4, one with 1/2 (no match), one missed, and one invented."""
    truth = box((0, 0, 0), (4, 4, 4)) | box((8, 0, 0), (10, 2, 2)) | box((8, 8, 8), (10, 10, 10))
    mask = box((0, 0, 0), (4, 4, 3)) | box((8, 0, 0), (10, 2, 1)) | box((14, 12, 0), (18, 15, 12))
    found = panoptic(instances(mask, truth, spacing_mm=(10.0, 10.0, 10.0)))
    assert (found.tp, found.fp, found.fn) == (1, 2, 2)
    assert found.sq == pytest.approx(0.75)
    assert found.rq == pytest.approx(1 / 3)
    assert found.pq == pytest.approx(found.sq * found.rq)
    sizes = panoptic_by_size([instances(mask, truth, spacing_mm=(5.0, 5.0, 5.0))])
    assert sizes[1.0, 10.0] == Panoptic(1, 0, 2, 0.75)  # lesions of 8, 1 and 1 ml
    assert sizes[0.1, 1.0] == Panoptic(0, 1, 0, 0.0)  # the candidate of .5 ml
    assert sizes[10.0, math.inf].fp == 1
    assert sum(sizes.values(), Panoptic()) == panoptic(
        instances(mask, truth, spacing_mm=(5.0, 5.0, 5.0))
    )
    nothing = np.zeros(SHAPE, dtype=bool)
    assert math.isnan(panoptic(instances(nothing, nothing, spacing_mm=(1.0, 1.0, 1.0))).pq)


def maps(*masks):
    return np.stack(masks).astype(np.uint8)


def test_energy_distance_by_brute_force():
    samples = [blob(s, level=0.52) for s in range(3)] + [np.zeros(SHAPE, dtype=bool)]
    readers = [blob(s, level=0.5) for s in (0, 1, 9)]

    def d(a, b):
        union = (a | b).sum()
        return 0.0 if union == 0 else 1 - (a & b).sum() / union

    def mean(pairs):
        return np.mean([d(a, b) for a, b in pairs])

    cross = mean(itertools.product(samples, readers))
    v = 2 * cross - mean(itertools.product(samples, repeat=2))
    v -= mean(itertools.product(readers, repeat=2))
    u = 2 * cross - mean(itertools.permutations(samples, 2))
    u -= mean(itertools.permutations(readers, 2))
    found = reader_agreement([overlaps(maps(*samples), maps(*readers), label=1)])
    assert found["ged_v"] == pytest.approx(v)
    assert found["ged_u"] == pytest.approx(u)
    # 4 samples and 3 readers, matched 12 to 12: more than any reader's mean, less than the best
    best = max(1 - d(a, b) for a in samples for b in readers)
    assert np.mean([1 - d(a, b) for a, b in itertools.product(samples, readers)]) < found["hm_iou"]
    assert found["hm_iou"] < best


def test_matched_iou_by_all_permutations():
    samples, readers = [blob(s) for s in range(3)], [blob(s) for s in (2, 11, 0)]
    part = overlaps(maps(*samples), maps(*readers), label=1)
    best = max(
        np.mean([part.cross[i, j] for i, j in enumerate(order)])
        for order in itertools.permutations(range(3))
    )
    assert reader_agreement([part])["hm_iou"] == pytest.approx(best)
    # each twice is the same two distributions
    twice = overlaps(maps(*samples, *samples), maps(*readers), label=1)
    assert reader_agreement([twice])["hm_iou"] == pytest.approx(best)
    assert reader_agreement([twice])["ged_v"] == pytest.approx(reader_agreement([part])["ged_v"])


def test_the_readers_themselves_are_perfect_and_one_mask_repeated_is_one_mask():
    readers = maps(*(blob(s) for s in range(4)))
    found = reader_agreement([overlaps(readers, readers, label=1)])
    assert found["ged_v"] == pytest.approx(0, abs=1e-12)
    assert [found[k] for k in ("hm_iou", "sensitivity", "d_max", "diversity", "ci")] == [1.0] * 5
    one = reader_agreement([overlaps(readers[:1], readers, label=1)])
    same = reader_agreement([overlaps(np.repeat(readers[:1], 5, axis=0), readers, label=1)])
    assert one == pytest.approx(same)


def test_independent_voxels_win_the_energy_distance_and_lose_the_match():
    """What GED alone says nothing about: right marginals without any shape."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*(np.arange(20),) * 3, indexing="ij")) - 9.5
    radius = np.sqrt((grid**2).sum(axis=0))
    readers = maps(*(radius < r for r in (5, 6, 6.5, 7.5)))
    share = readers.mean(axis=0)
    noise = maps(*(rng.random(share.shape) < share for _ in range(16)))
    majority = maps(share >= 0.5)
    found = {
        name: reader_agreement([overlaps(s, readers, label=1)])
        for name, s in (("noise", noise), ("majority", majority))
    }
    assert found["noise"]["ged_v"] < 0.4 * found["majority"]["ged_v"]
    assert found["noise"]["hm_iou"] < 0.9
    how = {"spacing_mm": (1.0, 1.0, 1.0)}
    drawn = sum((shape_of(s > 0, **how) for s in noise), Shape())
    truth = sum((shape_of(s > 0, **how) for s in readers), Shape())
    parts, surface = drawn.relative(truth)
    assert parts > 1.1
    assert surface > 1.2


def test_both_empty_agree_and_labels_are_averaged():
    empty, ball = np.zeros(SHAPE, np.uint8), blob(3).astype(np.uint8)
    nothing = overlaps(maps(empty), maps(empty, empty), label=1)
    assert nothing.cross.min() == 1
    assert reader_agreement([nothing])["ged_v"] == 0
    missed = overlaps(maps(empty), maps(ball), label=1)
    assert reader_agreement([missed])["ged_v"] == 2
    assert reader_agreement([missed])["ci"] == 0
    assert reader_agreement([nothing, nothing]) == reader_agreement([nothing])


def test_shape_of_a_box_and_of_single_voxels():
    found = shape_of(box((0, 1, 2), (3, 5, 4)), spacing_mm=(1.0, 2.0, 3.0))
    assert found.components == 1
    assert found.surface_mm2 == 2 * (3 * 8 + 3 * 6 + 8 * 6)  # at the edge of the volume, too
    specks = np.zeros(SHAPE, dtype=bool)
    specks[::4, ::4, ::4] = True
    assert shape_of(specks, spacing_mm=(1.0, 1.0, 1.0)).components == specks.sum()
    assert shape_of(specks, spacing_mm=(1.0, 1.0, 1.0)).surface_mm2 == 6 * specks.sum()
    assert math.isnan(Shape(3, 2.0, 1).relative(Shape(0, 0.0, 1))[0])


def test_calibration_of_a_class_equals_monai():
    from monai.metrics.calibration import calibration_binning

    rng = np.random.default_rng(1)
    p = rng.random(SHAPE).astype(np.float32) ** 3
    y = rng.random(SHAPE) < p**0.7
    found = calibration_error.reliability_of(p, y, bins=10)
    mean_p, mean_y, n = (
        t[0, 0].numpy()
        for t in calibration_binning(
            torch.from_numpy(p)[None, None], torch.from_numpy(y).float()[None, None], num_bins=10
        )
    )
    gaps = np.abs(mean_p - mean_y)
    assert found.ece == pytest.approx(np.nansum(gaps * n) / n.sum(), abs=1e-5)
    assert found.ace == pytest.approx(np.nanmean(gaps), abs=1e-5)
    assert found.mce == pytest.approx(np.nanmax(gaps), abs=1e-5)
    assert found.brier == pytest.approx(((p - y) ** 2).mean())


def test_calibration_of_several_readers_is_that_of_their_share():
    """A probability that is the share of the readers is calibrated for all of them together."""
    readers = [blob(s) for s in range(4)]
    share = np.mean(readers, axis=0)
    found = calibration_error.total(
        calibration_error.reliability_of(share, mask) for mask in readers
    )
    assert found.ece == pytest.approx(0, abs=1e-9)
    assert found.ace == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="probabilities in"):
        calibration_error.reliability_of(share * 2, readers[0])
