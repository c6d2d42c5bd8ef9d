"""Normative figures: the SSIM and Fréchet distance of MONAI, closed forms, degenerate methods."""

import math
import warnings

import numpy as np
import pytest
import torch

from volumediff.metrics import normative as nor

UNIT = (1.0, 1.0, 1.0)
ALL = np.ones((20, 20, 20), bool)


def textured(seed=0, shape=(20, 20, 20)):
    from scipy.ndimage import gaussian_filter

    x = gaussian_filter(np.random.default_rng(seed).normal(size=shape), 1.2)
    low, high = np.percentile(x, [1, 99])
    return ((x - low) / (high - low)).astype(np.float32)


def test_ssim_is_that_of_monai_away_from_the_border():
    from monai.metrics.regression import compute_ssim_and_cs

    x = textured()
    y = 0.7 * x + 0.3 * textured(1) + 0.1
    ours, edge = nor.ssim(x, y), 5
    theirs, _ = compute_ssim_and_cs(
        torch.from_numpy(y)[None, None],
        torch.from_numpy(x)[None, None],
        spatial_dims=3,
        kernel_size=(11, 11, 11),  # Wang et al. (2004)
        kernel_sigma=(1.5, 1.5, 1.5),
    )
    inner = ours[edge:-edge, edge:-edge, edge:-edge]
    np.testing.assert_allclose(
        inner, theirs[0, 0], atol=2e-4
    )  # MONAI computes in single precision
    np.testing.assert_allclose(nor.ssim(x, x), 1, atol=1e-6)
    np.testing.assert_allclose(nor.ssim(x, y), nor.ssim(y, x), atol=1e-6)


def case():
    """A healthy volume, the same with a bright lesion, and where that is."""
    healthy, lesion = textured(), np.zeros(ALL.shape, bool)
    lesion[6:13, 6:13, 6:13] = True
    return healthy, np.where(lesion, healthy + 1.5, healthy).astype(np.float32), lesion


def test_degenerate_methods():
    healthy, x, lesion = case()
    copy = nor.ssim(x, x)
    assert nor.rqi(x, x, foreground=ALL, similarity=copy) == pytest.approx(1)
    assert nor.caci(foreground=ALL, lesion=lesion, similarity=copy) == pytest.approx(0, abs=1e-6)
    constant = np.full_like(x, x.mean())
    nothing = nor.ssim(x, constant)
    assert nor.rqi(x, constant, foreground=ALL, similarity=nothing) < 0.1
    restored = nor.ssim(x, healthy)
    best = nor.caci(foreground=ALL, lesion=lesion, similarity=restored)
    assert best > 0.6
    assert best > nor.caci(foreground=ALL, lesion=lesion, similarity=nothing)
    assert nor.combined(1.0, 0.0, 0.0) == 0
    assert math.isnan(nor.combined(math.nan, 1.0, 1.0))
    assert nor.combined(1.0, 1.0, 1.0) == 1
    assert nor.combined(0.5, 0.2, 1.0) == pytest.approx((2 / 3 + 0.2) / 2)


def test_figures_by_hand():
    x = np.array([0.0, 1.0, 0.0, 1.0, 9.0], np.float32).reshape(1, 1, 5)
    y = np.array([0.5, 1.0, 0.0, 0.5, 0.0], np.float32).reshape(1, 1, 5)
    seen = np.array([1, 1, 1, 1, 0], bool).reshape(1, 1, 5)
    s = np.array([0.2, 0.8, 0.6, 0.4, -7.0], np.float32).reshape(1, 1, 5)
    # error 1.0 where the mean, 0.5, makes 2.0; similarity 0.5
    assert nor.rqi(x, y, foreground=seen, similarity=s) == pytest.approx((0.5 + 1 - 0.5) / 2)
    lesion = np.array([1, 0, 0, 0, 1], bool).reshape(1, 1, 5)
    kept, changed = 0.6, 1 - 0.2
    assert nor.caci(foreground=seen, lesion=lesion, similarity=s) == pytest.approx(
        2 * kept * changed / (kept + changed)
    )
    assert math.isnan(nor.caci(foreground=seen, lesion=~seen, similarity=s))
    assert math.isnan(nor.caci(foreground=seen, lesion=seen, similarity=s))
    # far too wrong an error counts as that of a constant, not below
    assert nor.rqi(x, y + 100, foreground=seen, similarity=s) == pytest.approx(0.25)
    low, high = nor.scale(
        np.linspace(0, 100, 10001, dtype=np.float32).reshape(1, 1, -1),
        ALL[:1, :1, :1] | np.ones((1, 1, 10001), bool),
    )
    assert (low, high) == pytest.approx((1, 98), rel=1e-4)
    assert nor.scale(np.full((1, 1, 5), 4.0, np.float32), seen)[1] > 0


def test_frechet_distance_is_that_of_monai():
    from monai.metrics.fid import get_fid_score

    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(200, 5)), rng.normal(size=(150, 5)) @ rng.normal(size=(5, 5)) + 0.3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = float(get_fid_score(torch.from_numpy(a), torch.from_numpy(b)))
    ours = nor.frechet(nor.FeatureMoments.of(a), nor.FeatureMoments.of(b))
    assert ours == pytest.approx(theirs, rel=1e-6)
    split = nor.FeatureMoments.of(a[:60]) + nor.FeatureMoments.of(a[60:])
    assert nor.frechet(split, nor.FeatureMoments.of(b)) == pytest.approx(ours)
    np.testing.assert_allclose(split.covariance, np.cov(a.T))


def test_frechet_distance_of_known_normals():
    # diagonal covariances: |μ|² + Σ (σ_a - σ_b)²
    n = 50
    a = nor.FeatureMoments(n, np.zeros(2), np.diag([4.0, 9.0]) * (n - 1))
    mean = np.array([3.0, 4.0])
    b = nor.FeatureMoments(n, n * mean, np.diag([1.0, 25.0]) * (n - 1) + n * np.outer(mean, mean))
    assert nor.frechet(a, b) == pytest.approx(25 + 1 + 4)
    assert nor.frechet(a, a) == pytest.approx(0, abs=1e-9)
    flat = nor.FeatureMoments(n, n * mean, n * np.outer(mean, mean))  # no spread at all
    assert nor.frechet(flat, b) == pytest.approx(1 + 25)


def test_ahi_is_the_share_of_the_way_back():
    rng = np.random.default_rng(0)
    cubes = rng.normal(size=(300, 4))

    def at(distance):
        return [nor.FeatureMoments.of(cubes + np.array([distance, 0, 0, 0]))]

    def index(restored):
        sets = {"pathological": at(3.0), "restored": at(restored)}
        return nor.ahi(**sets, unseen=at(1.0), normal=at(0.0))

    assert index(3.0) == 0  # returns what it was given
    assert index(1.0) == pytest.approx(1)  # as healthy as other healthy volumes
    assert index(2.0) == pytest.approx((9 - 4) / (9 - 1))
    assert index(4.0) == 0  # worse than the lesion: not below 0
    swapped = {"pathological": at(1.0), "restored": at(1.0), "unseen": at(3.0)}
    assert math.isnan(nor.ahi(**swapped, normal=at(0.0)))
    few = [nor.FeatureMoments.of(cubes[:10])]
    assert math.isnan(nor.ahi(pathological=few, restored=few, unseen=few, normal=few))
    assert math.isnan(nor.ahi(pathological=[], restored=few, unseen=few, normal=few))


def test_features_are_those_of_every_cube():
    rng = np.random.default_rng(0)
    x = rng.random((6, 4, 5)).astype(np.float32)
    seen = rng.random(x.shape) < 0.7
    got = nor.moments(x, foreground=seen, spacing_mm=(2.0, 4.0, 4.0))
    rows = []  # cubes of 4 x 2 x 2 voxels, the last ones cut by the border
    for d in range(0, 6, 4):
        for h in range(0, 4, 2):
            for w in range(0, 5, 2):
                inside = [
                    (i, j, k)
                    for i in range(d, min(d + 4, 6))
                    for j in range(h, h + 2)
                    for k in range(w, min(w + 2, 5))
                    if seen[i, j, k]
                ]
                if len(inside) < 8:
                    continue
                values = [float(x[p]) for p in inside]
                row = [np.mean(values), np.std(values)]
                for axis in range(3):
                    steps = []
                    for p in inside:
                        q = tuple(v + (n == axis) for n, v in enumerate(p))
                        if q[axis] < x.shape[axis] and seen[q]:
                            steps.append(abs(float(x[q]) - float(x[p])))
                    row.append(np.mean(steps) if steps else 0.0)
                rows.append(row)
    expected = nor.FeatureMoments.of(np.array(rows))
    assert got.count == expected.count > 3
    np.testing.assert_allclose(got.total, expected.total, rtol=1e-5)
    np.testing.assert_allclose(got.products, expected.products, rtol=1e-5)


def test_features_ignore_the_background():
    x, seen = textured(), ALL.copy()
    seen[:, :, 12:] = False
    other = np.where(seen, x, 77).astype(np.float32)
    a, b = (nor.moments(v, foreground=seen, spacing_mm=UNIT, cube_mm=5.0) for v in (x, other))
    np.testing.assert_array_equal(a.products, b.products)
    assert a.count == 4 * 4 * 2  # the third cube along w has 2 of 5 slices
