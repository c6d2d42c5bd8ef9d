"""Blocks of the localization head: closed forms, invariances, hand-computed fixtures."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from anomaly_models import foreground

from volumediff.anomaly import _filters as filters
from volumediff.anomaly import post, score, threshold
from volumediff.anomaly.baselines import IntensityBaseline, Prevalence, Smoothing
from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.ensemble import GeometricMean, HarmonicMean, MeanEnsemble
from volumediff.anomaly.fitted.atlas_z import AtlasZ
from volumediff.anomaly.maps.asymmetric import Asymmetric
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.maps.l2 import L2
from volumediff.anomaly.maps.product import Product
from volumediff.anomaly.maps.saturated import Saturated
from volumediff.anomaly.maps.ssim import SSIM
from volumediff.anomaly.maps.ssim_ensemble import SSIMEnsemble
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.normalization import ByIntensity, Raw, Residual, Voxelwise
from volumediff.calibration import collect_maps
from volumediff.errors import DataError
from volumediff.metrics.detection import Histogram, histogram, rates, threshold_at_fpr

SHAPE = (10, 12, 8)
INSIDE = foreground(SHAPE)
MM = (1.0, 1.0, 1.0)


def noise(seed, *shape):
    return torch.randn((1, 1, *(shape or SHAPE)), generator=torch.Generator().manual_seed(seed))


def padded(a, value):
    return torch.nn.functional.pad(a, (3, 2, 4, 1, 0, 5), value=value)


def unpadded(a):
    return a[..., : SHAPE[0], 4 : 4 + SHAPE[1], 3 : 3 + SHAPE[2]]


# filters


def test_smoothing_is_the_masked_gaussian_of_scipy():
    from scipy.ndimage import gaussian_filter

    a, spacing, sigma = noise(0), (2.0, 1.0, 4.0), 3.0
    got = filters.smooth(a, sigma_mm=sigma, spacing_mm=spacing, foreground=INSIDE)
    sigmas = [sigma / s for s in spacing]
    top, bottom = (
        gaussian_filter(v.double().numpy()[0, 0], sigmas, mode="constant", truncate=8.0)
        for v in (a * INSIDE, INSIDE)
    )
    expected = np.where(INSIDE.numpy()[0, 0], top / bottom, 0)
    # ours is cut at 3 standard deviations, which holds 0.997 of the weight along each axis
    np.testing.assert_allclose(got.numpy()[0, 0], expected, atol=0.01)
    constant = filters.smooth(
        torch.full_like(a, 2.5), sigma_mm=sigma, spacing_mm=spacing, foreground=INSIDE
    )
    torch.testing.assert_close(constant, 2.5 * INSIDE)


def test_dilation_and_closing_use_millimetres():
    a = torch.zeros((1, 1, 9, 9, 9))
    a[..., 4, 4, 4] = 1
    wide = filters.dilate(a, radius_mm=2.0, spacing_mm=(1.0, 2.0, 4.0))
    assert wide[0, 0, :, 4, 4].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]
    assert wide[0, 0, 4, :, 4].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert wide[0, 0, 4, 4, :].tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]  # 0.5 voxels round up
    gap = torch.zeros((1, 1, 9, 1, 1))
    gap[0, 0, :, 0, 0] = torch.tensor([0, 0, 1, 1, 0, 1, 1, 0, 0])
    closed = filters.close(gap, radius_mm=1.0, spacing_mm=MM)
    assert closed[0, 0, :, 0, 0].tolist() == [0, 0, 1, 1, 1, 1, 1, 0, 0]


def test_quantile_inside_counts_the_foreground_only():
    a = torch.arange(10.0)
    inside = a >= 5
    assert filters.inside_quantile(a, 0.2, foreground=inside) == 5
    assert filters.inside_quantile(a, 1.0, foreground=inside) == 9
    with pytest.raises(ValueError, match="expected a foreground with voxels"):
        filters.inside_quantile(a, 0.5, foreground=a > 99)


# maps

ALL_MAPS = [
    L1(),
    L2(),
    SSIM(sigma_mm=1.5),
    Product((SSIM(), L1())),
    Saturated(L1(), quantile=0.9),
    SSIMEnsemble((0.6, 1.5)),
    Asymmetric(L1(), sigma_mm=1.0),
]


@pytest.mark.parametrize("block", ALL_MAPS, ids=lambda m: type(m).__name__)
def test_maps_see_the_foreground_only(block):
    x, y = noise(1), noise(2)
    a = block(x, y, foreground=INSIDE, spacing_mm=MM)
    assert bool((a[~INSIDE] == 0).all())
    assert float(a.min()) >= 0
    assert float(a[INSIDE].mean()) > 0.05
    torch.testing.assert_close(
        block(x, x.clone(), foreground=INSIDE, spacing_mm=MM),
        torch.zeros_like(a),
        atol=1e-5,
        rtol=0,
    )
    # another background, and a larger field of view
    other = torch.where(INSIDE, x, 9.0)
    torch.testing.assert_close(block(other, y, foreground=INSIDE, spacing_mm=MM), a)
    wide = block(padded(x, -1.0), padded(y, 5.0), foreground=padded(INSIDE, False), spacing_mm=MM)
    torch.testing.assert_close(unpadded(wide), a)


def test_residual_maps_by_hand():
    x = torch.tensor([1.0, -2.0, 0.5]).reshape(1, 3, 1, 1, 1)
    zero, one = torch.zeros_like(x), torch.ones((1, 1, 1, 1, 1), dtype=torch.bool)
    assert float(L1()(x, zero, foreground=one, spacing_mm=MM)) == pytest.approx(3.5 / 3)
    assert float(L2()(x, zero, foreground=one, spacing_mm=MM)) == pytest.approx(5.25 / 3)


def test_ssim_equals_scikit_image_formula_inside():
    # The textbook value at the centre, with weights of the whole window inside the foreground.
    x, y = noise(3, 17, 17, 17), noise(4, 17, 17, 17)
    inside = torch.ones_like(x, dtype=torch.bool)
    got = SSIM(sigma_mm=1.5)(x, y, foreground=inside, spacing_mm=MM)[0, 0, 8, 8, 8]
    r = torch.arange(-5, 6).double()
    w = torch.exp(-0.5 * (r / 1.5) ** 2)
    w = w / w.sum()
    w = torch.einsum("i,j,k->ijk", w, w, w)
    p, q = (v[0, 0, 3:14, 3:14, 3:14].double() + 1 for v in (x, y))
    mp, mq = (w * p).sum(), (w * q).sum()
    vp, vq, c = (
        (w * (p - mp) ** 2).sum(),
        (w * (q - mq) ** 2).sum(),
        (w * (p - mp) * (q - mq)).sum(),
    )
    c1, c2 = 0.02**2, 0.06**2
    ssim = (2 * mp * mq + c1) * (2 * c + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
    assert float(got) == pytest.approx(max(0.0, 1 - float(ssim)), abs=2e-3)


def test_saturated_is_relative_to_the_foreground_quantile():
    x = torch.zeros((1, 1, *SHAPE))
    inside = INSIDE.flatten().nonzero().flatten()
    x.view(-1)[inside] = torch.arange(len(inside)).float()
    a = Saturated(L1(), quantile=0.5)(x, torch.zeros_like(x), foreground=INSIDE, spacing_mm=MM)
    assert float((a[INSIDE] == 1).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(a.max()) == 1
    same = Saturated(L1())(x, 3 * x, foreground=INSIDE, spacing_mm=MM)
    twice = Saturated(L1())(5 * x, 15 * x, foreground=INSIDE, spacing_mm=MM)
    torch.testing.assert_close(same, twice)


# post-processing

POSTS = [
    post.Erode(distance_mm=6.0),
    post.Median(radius_mm=6.0),
    post.Smooth(sigma_mm=2.0),
    post.MinComponent(volume_ml=0.1),
]


def blobs():
    g = torch.meshgrid(*(torch.arange(16.0) for _ in range(3)), indexing="ij")
    big = sum((v - 5.5) ** 2 for v in g) <= 3.5**2
    small = sum((v - 12.0) ** 2 for v in g) <= 1.2**2
    return (big | small)[None, None]


@pytest.mark.parametrize("block", POSTS, ids=lambda p: type(p).__name__)
def test_post_processing_is_the_same_at_another_spacing(block):
    coarse = blobs()
    inside = foreground((16, 16, 16))
    fine = coarse
    wide = inside
    for axis in (2, 3, 4):
        fine, wide = fine.repeat_interleave(2, axis), wide.repeat_interleave(2, axis)
    value = (lambda m: m) if block.rank > post.MASK else (lambda m: m.float())
    a = block(value(coarse), foreground=inside, spacing_mm=(2.0, 2.0, 2.0)).float()
    b = block(value(fine), foreground=wide, spacing_mm=(1.0, 1.0, 1.0)).float()
    b = torch.nn.functional.avg_pool3d(b, 2)
    assert float(a.sum()) > 0
    # in voxels instead of mm, the fine volume is another problem
    wrong = block(value(fine), foreground=wide, spacing_mm=(2.0, 2.0, 2.0)).float()
    wrong = torch.nn.functional.avg_pool3d(wrong, 2)
    right, off = (float((a - v).abs().sum() / a.sum()) for v in (b, wrong))
    # the outline of a median over a ball of three voxels is rough
    assert right < (0.25 if isinstance(block, post.Median) else 0.12)
    assert off > 1.5 * right


@pytest.mark.parametrize("block", POSTS[:3], ids=lambda p: type(p).__name__)
def test_post_processing_ignores_padding(block):
    a = noise(5).abs() * INSIDE
    once = block(a, foreground=INSIDE, spacing_mm=MM)
    wide = block(padded(a, 0.0), foreground=padded(INSIDE, False), spacing_mm=MM)
    torch.testing.assert_close(unpadded(wide), once)
    assert bool((once[~INSIDE] == 0).all())


def test_erode_takes_the_rim_and_the_field_of_view_is_a_rim():
    a = torch.ones((1, 1, 7, 7, 7))
    everywhere = torch.ones_like(a, dtype=torch.bool)
    left = post.Erode(distance_mm=2.0)(a, foreground=everywhere, spacing_mm=MM)
    assert int(left.sum()) == 27
    flat = post.Erode(distance_mm=2.0)(a, foreground=everywhere, spacing_mm=(4.0, 1.0, 1.0))
    assert int(flat.sum()) == 7 * 3 * 3


def test_median_removes_small_blobs_and_keeps_large_ones():
    done = post.Median(radius_mm=2.0)(
        blobs().float(), foreground=torch.ones_like(blobs()), spacing_mm=MM
    )
    assert float(done[0, 0, 12, 12, 12]) == 0
    assert float(done[0, 0, 5, 5, 5]) == 1


def test_min_component_counts_millilitres():
    m = torch.zeros((1, 1, 6, 6, 6), dtype=torch.bool)
    m[0, 0, 0, 0, 0] = m[0, 0, 1, 1, 1] = True  # one component of two voxels, by a corner
    m[0, 0, 5, 5, 5] = True
    keep = post.MinComponent(volume_ml=0.002)(m, foreground=m | True, spacing_mm=MM)
    assert int(keep.sum()) == 2
    assert not bool(keep[0, 0, 5, 5, 5])
    assert (
        int(post.MinComponent(volume_ml=0.002)(m, foreground=m, spacing_mm=(2.0, 1.0, 1.0)).sum())
        == 3
    )


@pytest.mark.parametrize("radius", [1.0, 2.0, 3.3])
def test_opening_and_closing_are_those_of_a_ball(radius):
    from scipy.ndimage import binary_closing, binary_opening

    mask = noise(31, 14, 12, 10) + 0.2 * blobs()[..., :14, :12, :10] > 0.3
    mask = filters.dilate(mask.float(), radius_mm=1.0, spacing_mm=MM)[..., 1::1].bool() & (
        noise(32, 14, 12, 9) > -1.2
    )
    spacing = (1.0, 2.0, 1.5)
    ball = post._ball(radius, spacing)
    wide = np.pad(mask.numpy()[0, 0], 6)
    everywhere = torch.ones_like(mask)
    for block, exact in ((post.Open, binary_opening), (post.Close, binary_closing)):
        got = block(radius_mm=radius)(mask, foreground=everywhere, spacing_mm=spacing)
        expected = exact(wide, structure=ball)[6:-6, 6:-6, 6:-6]
        assert np.array_equal(got.numpy()[0, 0], expected)
    closed = post.Close(radius)(mask, foreground=mask, spacing_mm=spacing)
    assert torch.equal(closed, mask), "nothing is filled outside the foreground"
    for empty in (torch.zeros_like(mask), everywhere):
        got = post.Close(radius)(empty, foreground=everywhere, spacing_mm=spacing)
        assert torch.equal(got, empty)


def test_the_largest_component_is_kept():
    mask = blobs()
    largest = post.LargestComponent()(mask, foreground=mask, spacing_mm=MM)
    assert bool(largest[0, 0, 5, 5, 5])
    assert not bool(largest[0, 0, 12, 12, 12])
    assert int(largest.sum()) > 100
    none = torch.zeros_like(mask)
    assert not bool(post.LargestComponent()(none, foreground=mask, spacing_mm=MM).any())


# scores, thresholds, ensembles


def test_scores_by_hand():
    a = torch.zeros((1, 1, *SHAPE))
    values = torch.arange(int(INSIDE.sum())).float()
    a[INSIDE] = values
    a[~INSIDE] = 1e6
    assert score.MeanScore()(a, foreground=INSIDE) == pytest.approx(float(values.mean()))
    assert score.Max()(a, foreground=INSIDE) == float(values[-1])
    n = len(values)
    got = score.TopFraction(0.01)(a, foreground=INSIDE)
    assert got == pytest.approx(float(values[-math.ceil(0.01 * n) :].mean()))
    expected = (values - 100).clamp(min=0).sum() / n
    assert score.Excess(100.0)(a, foreground=INSIDE) == pytest.approx(float(expected))
    with pytest.raises(ValueError, match="fraction: expected a share"):
        score.TopFraction(0.0)


def calibration_of(values, volumes=6, **more):
    return Calibration("x", {}, histogram(values), (0.0,) * volumes, **more)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.3])
def test_healthy_fpr_is_a_quantile(rate):
    values = noise(6, 40, 40, 20)
    t = threshold.HealthyFPR(rate)(calibration_of(values))
    above = int((values > t).sum()) / values.numel()
    assert above <= rate
    assert above == pytest.approx(rate, abs=2e-4)
    assert t == pytest.approx(float(values.flatten().quantile(1 - rate)), abs=2e-3)


def test_healthy_fpr_of_ties_never_exceeds_the_rate():
    values = torch.cat([torch.zeros(90), torch.ones(10)])
    assert 0 <= threshold.HealthyFPR(0.1)(calibration_of(values)) < 1
    t = threshold.HealthyFPR(0.05)(calibration_of(values))
    assert not bool((values > t).any())
    assert t < 1.001


def test_conformal_thresholds_cover_new_volumes_at_any_number():
    # Exact for continuous scores: P(t_new <= t_(k)) = k / (n + 1), here with 19 volumes of 40
    # voxels each of which has its own scale.
    rule = threshold.Conformal(probability=0.8, rate=0.05)
    generator = np.random.default_rng(0)
    hits, trials = 0, 250
    for _ in range(trials):
        scales = generator.gamma(2.0, size=(20, 1))
        values = scales * abs(generator.standard_normal((20, 40)))
        maps_of = torch.from_numpy(1 + values).float()
        each = tuple(histogram(a) for a in maps_of[:19])
        t = rule(Calibration("x", {}, each[0], (0.0,) * 19, each=each))
        hits += int((maps_of[19] > t).sum()) <= 0.05 * 40
    # 16 of 20; binomial standard error 0.025
    assert hits / trials == pytest.approx(0.8, abs=0.075)


def test_conformal_thresholds_by_hand():
    each = tuple(histogram(torch.tensor([0.0, 0.0, float(i)])) for i in (3, 1, 9, 4))
    calibration = Calibration("x", {}, each[0], (0.0,) * 4, each=each)
    at = threshold.Conformal(probability=0.6, rate=0.0)  # k = 3
    assert at(calibration) == pytest.approx(4.0, rel=1e-3)
    assert threshold.Conformal(0.8, rate=0.34)(calibration) == pytest.approx(0.0, abs=1e-6)
    with pytest.raises(ValueError, match=r"at least 9 healthy calibration volumes .* got 4"):
        threshold.Conformal(0.9)(calibration)
    assert at(None) is None
    with pytest.raises(ValueError, match="expected probability in"):
        threshold.Conformal(1.0)


def test_otsu_is_the_best_of_all_splits():
    values = torch.cat([noise(41, 300, 1, 1).flatten() * 0.3, 2 + noise(42, 80, 1, 1).flatten()])
    a = torch.full((1, 1, *SHAPE), 1e3)
    inside = torch.zeros_like(INSIDE)
    inside.view(-1)[:380] = True
    a.view(-1)[:380] = values
    got = threshold.Otsu(bins=64).of(a, foreground=inside)

    def within(t):
        parts = values[values <= t], values[values > t]
        return sum(float(((p - p.mean()) ** 2).sum()) for p in parts)

    edges = torch.linspace(float(values.min()), float(values.max()), 65)[1:-1].tolist()
    best = min(edges, key=within)
    # within a bin the histogram does not know where the values lie
    assert within(got) <= 1.02 * within(best)
    assert 0.5 < got < 1.6
    assert threshold.Otsu().of(torch.ones_like(a), foreground=inside) == 1.0


def test_own_thresholds_follow_the_map():
    x = 0.2 * noise(20)
    method = IntensityBaseline(threshold=threshold.OwnQuantile(0.9))
    found = find(method, x)
    assert float(found.mask.sum() / INSIDE.sum()) == pytest.approx(0.1, abs=0.01)
    assert found.threshold == filters.inside_quantile(found.map, 0.9, foreground=INSIDE)
    assert method.threshold(None) is None
    assert not method.threshold.calibrated
    assert find(IntensityBaseline(threshold=threshold.Fixed(0.3)), x).threshold == 0.3
    with pytest.raises(ValueError, match="quantile: expected a share"):
        threshold.OwnQuantile(1.0)
    with pytest.raises(ValueError, match="bins: expected at least 2"):
        threshold.Otsu(1)


def test_thresholds_need_what_they_need():
    values = noise(7)
    assert threshold.Fixed(0.3)(None) == 0.3
    assert threshold.BestThreshold()(calibration_of(values)) is None
    assert threshold.BestThreshold.oracle
    assert not threshold.ValidationThreshold.oracle
    assert threshold.HealthyFPR()(None) is None
    assert threshold.ValidationThreshold()(None) is None
    seen = calibration_of(values, validation_threshold=0.7)
    assert threshold.ValidationThreshold()(seen) == 0.7
    with pytest.raises(ValueError, match="has seen no validation volumes"):
        threshold.ValidationThreshold()(calibration_of(values))
    with pytest.raises(ValueError, match="at least 5 healthy calibration volumes, got 4"):
        threshold.HealthyFPR()(calibration_of(values, volumes=4))
    with pytest.raises(ValueError, match=r"rate: expected a share in \(0, 1\), got 5"):
        threshold.HealthyFPR(5.0)


def test_merges_are_generalised_means():
    a, b = noise(8).abs() + 0.1, noise(9).abs() + 0.1
    cases = (
        (MeanEnsemble(), (a + b) / 2),
        (HarmonicMean(), 2 / (1 / a + 1 / b)),
        (GeometricMean(), (a * b).sqrt()),
    )
    for block, expected in cases:
        got = block.inverse((block.forward(a) + block.forward(b)) / 2)
        torch.testing.assert_close(got, expected)
    zero = HarmonicMean()
    merged = zero.inverse((zero.forward(a) + zero.forward(torch.zeros_like(a))) / 2)
    assert float(merged.max()) < 3e-6
    assert len(MeanEnsemble(log_snrs=(0.0, 1.0), seeds=3).members()) == 6
    with pytest.raises(ValueError, match="got both"):
        MeanEnsemble(levels=(0.1,), log_snrs=(0.0,))
    with pytest.raises(ValueError, match="seeds: expected at least 1"):
        MeanEnsemble(seeds=0)


# normalization and calibration


def residual(a, x=None, inside=INSIDE):
    return Residual(a * inside, noise(99) if x is None else x, inside, MM)


def test_voxelwise_normalization_is_a_z_score():
    block = Voxelwise(sigma_mm=0.0, pool_mm=0.0, floor=0.0)
    place = 1 + noise(10).abs()  # another deviation at every voxel
    healthy = [residual(2 + place * noise(i)) for i in range(400)]
    statistics = block.fit(healthy)
    z = torch.stack([block(residual(2 + place * noise(1000 + i)), statistics) for i in range(300)])
    inside = z[:, INSIDE]
    assert float(inside.mean()) == pytest.approx(0, abs=0.02)
    assert float(inside.std(0).mean()) == pytest.approx(1, abs=0.02)
    assert float(inside.std(0).std()) < 0.08  # of which sampling 0.055: the places are equal now
    assert bool((z[:, ~INSIDE] == 0).all())


def test_pooling_and_floor_tame_few_volumes():
    healthy = [residual(noise(i)) for i in range(4)]
    loud = []
    for block in (Voxelwise(0.0, 0.0, 0.0), Voxelwise(0.0, 3.0, 0.1)):
        statistics = block.fit([block.prepare(r) for r in healthy])
        z = block(block.prepare(residual(noise(50))), statistics)
        loud.append(float(z.abs().max()))
    assert loud[0] > 3 * loud[1]


def test_voxels_outside_the_common_foreground_take_the_median():
    inside = [INSIDE.clone() for _ in range(4)]
    for m in inside[1:]:
        m[..., 1, 1, 1] = False  # only the first volume has this voxel
    block = Voxelwise(0.0, 0.0, 0.0)
    statistics = block.fit([residual(3 + noise(i), inside=m) for i, m in enumerate(inside)])
    mean, unit = statistics["mean"][INSIDE], statistics["unit"][INSIDE]
    assert float(statistics["mean"][0, 0, 1, 1, 1]) == pytest.approx(
        float(mean.median()), abs=0.01
    )
    assert float(statistics["unit"][0, 0, 1, 1, 1]) == pytest.approx(
        float(unit.median()), abs=0.01
    )


def test_by_intensity_equalises_tissues():
    block = ByIntensity(sigma_mm=0.0, bins=2, floor=0.0)

    def volume(i):
        x = torch.sign(noise(300 + i)) / 2  # two tissues, not aligned
        level = torch.where(x > 0, 3.0, 1.0)
        return Residual(level * (1 + 0.5 * noise(i)) * INSIDE, x, INSIDE, MM)

    statistics = block.fit([volume(i) for i in range(20)])
    torch.testing.assert_close(statistics["mean"], torch.tensor([1.0, 3.0]), atol=0.05, rtol=0)
    torch.testing.assert_close(statistics["unit"], torch.tensor([0.5, 1.5]), atol=0.05, rtol=0)
    new = volume(77)
    z = block(new, statistics)
    for tissue in (new.x > 0, new.x < 0):
        assert float(z[tissue & INSIDE].std()) == pytest.approx(1, abs=0.1)


def test_equal_healthy_maps_have_the_unit_of_the_map():
    for block in (Voxelwise(sigma_mm=2.0), ByIntensity(sigma_mm=2.0, bins=1)):
        same = block.prepare(residual(torch.full((1, 1, *SHAPE), 0.3)))
        z = block(block.prepare(residual(torch.full((1, 1, *SHAPE), 0.4))), block.fit([same] * 3))
        torch.testing.assert_close(z[INSIDE], torch.full_like(z[INSIDE], 0.1), atol=1e-4, rtol=0)


def test_voxelwise_needs_one_grid():
    block = Voxelwise(0.0)
    small = Residual(noise(0, 4, 4, 4), noise(0, 4, 4, 4), noise(0, 4, 4, 4) > -9, MM)
    with pytest.raises(
        ValueError, match=r"expected a map of shape \(10, 12, 8\).*got \(4, 4, 4\)"
    ):
        block.fit([residual(noise(1)), small])
    with pytest.raises(ValueError, match="at least two healthy volumes"):
        block.fit([residual(noise(1))])


def example(i, **more):
    return Example(0.2 * noise(i), INSIDE, MM, **more)


@pytest.mark.parametrize(
    "normalize",
    [Raw(), Voxelwise(0.0, 0.0, 0.0), ByIntensity(0.0)],
    ids=lambda n: type(n).__name__,
)
def test_healthy_fpr_holds_on_new_healthy_volumes(normalize):
    rate = 0.05
    method = IntensityBaseline(normalize=normalize, threshold=threshold.HealthyFPR(rate))
    calibration = collect_maps.fit(method, None, (example(i) for i in range(8)), seed=0)
    marked, voxels = 0, 0
    for i in range(60):
        e = example(500 + i)
        got = method.localize(
            None, e.x, foreground=INSIDE, spacing_mm=MM, key=0, calibration=calibration
        )
        marked, voxels = marked + int(got.mask.sum()), voxels + int(INSIDE.sum())
    # Both sides are samples: 8 calibration volumes and 60 test volumes of independent voxels. The
    # statistics of 7 volumes, against 8 on new ones, put the tails of t with 6 instead of 7
    # degrees of freedom into the threshold: 0.004 below the rate.
    spread = math.sqrt(rate * (1 - rate) / int(INSIDE.sum()) * (1 / 8 + 1 / 60))
    assert -2.6 * spread - 0.004 < marked / voxels - rate < 2.6 * spread
    # normalized with statistics that contain the volume itself, healthy maps look too normal
    residuals = [method.residual(None, example(i), key=0) for i in range(8)]
    statistics = normalize.fit(residuals)
    naive = [histogram(method.finish(r, statistics), foreground=INSIDE) for r in residuals]
    if isinstance(normalize, Voxelwise):
        h = naive[0]
        for other in naive[1:]:
            h = h + other
        optimistic = threshold_at_fpr(h, rate)
        honest = threshold_at_fpr(calibration.healthy, rate)
        assert honest > 1.15 * optimistic
        assert rates(calibration.healthy, optimistic).fpr > 1.5 * rate


def test_padding_changes_no_threshold():
    method = Smoothing(sigma_mm=2.0, post=(post.Median(1.0),), normalize=ByIntensity(1.0, bins=4))
    small = collect_maps.fit(method, None, (example(i) for i in range(5)), seed=0)
    wide = [
        Example(padded(e.x, -1.0), padded(e.foreground, False), MM)
        for e in (example(i) for i in range(5))
    ]
    large = collect_maps.fit(method, None, wide, seed=0)
    for rate in (0.01, 0.05):
        a, b = (threshold.HealthyFPR(rate)(c) for c in (small, large))
        assert a == pytest.approx(b, rel=3e-4)
    assert small.scores == pytest.approx(large.scores, rel=1e-4)


def test_validation_picks_the_best_dice():
    truth = torch.zeros((1, 1, *SHAPE), dtype=torch.bool)
    truth[..., 3:6, 3:6, 3:6] = True
    method = IntensityBaseline(threshold=threshold.ValidationThreshold())
    calibration = collect_maps.fit(method, None, (example(i) for i in range(3)), seed=0)
    sick = [
        Example(0.1 * noise(i).clamp(-2, 2) + truth, INSIDE, MM, truth=truth) for i in (70, 71)
    ]
    better = collect_maps.validate(calibration, method, None, sick, seed=0)
    found = method.localize(
        None, sick[0].x, foreground=INSIDE, spacing_mm=MM, key=0, calibration=better
    )
    assert torch.equal(found.mask, truth)
    with pytest.raises(ValueError, match="validation volume 0 has no truth"):
        collect_maps.validate(calibration, method, None, [example(0)], seed=0)
    healthy = [example(0, truth=torch.zeros_like(truth))]
    with pytest.raises(ValueError, match="expected validation volumes with lesions"):
        collect_maps.validate(calibration, method, None, healthy, seed=0)
    with pytest.raises(ValueError, match="at least 3 healthy volumes, got 2"):
        collect_maps.fit(
            IntensityBaseline(normalize=Voxelwise()), None, (example(i) for i in range(2)), seed=0
        )


def test_calibrations_survive_the_disk(tmp_path):
    method = IntensityBaseline(normalize=Voxelwise())
    saved = collect_maps.fit(method, None, (example(i) for i in range(5)), seed=0)
    path = tmp_path / "calibration" / "v1.2.safetensors"
    saved.save(path)
    got = Calibration.load(path)
    assert (got.fingerprint, got.scores, got.validation_threshold) == (
        saved.fingerprint,
        saved.scores,
        None,
    )
    assert set(got.statistics) == {"mean", "unit"}
    for name, value in saved.statistics.items():
        assert torch.equal(got.statistics[name], value)
    assert threshold.HealthyFPR()(got) == threshold.HealthyFPR()(saved)
    rule = threshold.Conformal(0.5)
    assert len(got.each) == 5
    assert got.errors is None
    assert rule(got) == rule(saved)
    assert sorted(p.name for p in path.parent.iterdir()) == ["v1.2.safetensors"]
    runs = replace(saved, errors=torch.arange(10.0).reshape(5, 2).double())
    runs.save(tmp_path / "runs.safetensors")
    assert torch.equal(Calibration.load(tmp_path / "runs.safetensors").errors, runs.errors)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(DataError, match="damaged: does not match its SHA-256; remove it"):
        Calibration.load(path)
    with pytest.raises(DataError, match=r"nothing\.safetensors: cannot be read"):
        Calibration.load(tmp_path / "nothing.safetensors")


def test_threshold_rejects_an_empty_histogram():
    empty = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="expected healthy voxels"):
        threshold.HealthyFPR()(Calibration("x", {}, Histogram(empty, empty, empty), (0.0,) * 9))


# baselines


def healthy(*volumes):
    return [Example(x, torch.ones_like(x) > 0, MM) for x in volumes]


def atlas_of(n=6, *, floor=0.1):
    method = AtlasZ(floor=floor)
    volumes = healthy(*(0.2 * noise(i) for i in range(n)))
    return replace(method, fit=method.learn(None, volumes, key=0))


def test_atlas_is_mean_and_deviation():
    stack = torch.cat([0.2 * noise(i) for i in range(6)]).double()
    fit = atlas_of().fit
    torch.testing.assert_close(fit.tensors["mean"], stack.mean(0, keepdim=True).float())
    torch.testing.assert_close(fit.tensors["std"], stack.std(0, keepdim=True).float())
    assert fit.volumes == 6
    assert repr(fit) != repr(atlas_of(5).fit)
    with pytest.raises(ValueError, match="at least two healthy volumes, got 1"):
        AtlasZ().learn(None, healthy(noise(0)), key=0)
    with pytest.raises(ValueError, match="align the volumes to one grid"):
        AtlasZ().learn(None, healthy(noise(0), noise(0, 3, 3, 3)), key=0)


def find(method, x):
    return method.localize(None, x, foreground=INSIDE, spacing_mm=MM, key=0)


def test_baselines_by_hand():
    x = 0.2 * noise(20)
    torch.testing.assert_close(find(IntensityBaseline(), x).map, (1 + x) / 2 * INSIDE)
    torch.testing.assert_close(find(IntensityBaseline(sign=-1), x).map, (1 - x) / 2 * INSIDE)
    assert torch.equal(find(Prevalence(), x).map, INSIDE.float())
    smooth = filters.smooth(x, sigma_mm=2.0, spacing_mm=MM, foreground=INSIDE)
    got = find(Smoothing(sigma_mm=2.0), x)
    torch.testing.assert_close(got.map, (x - smooth).abs() * INSIDE)
    assert torch.equal(got.pseudo_healthy[~INSIDE], x[~INSIDE])
    atlas = atlas_of(floor=0.5)
    mean, std = atlas.fit.tensors["mean"], atlas.fit.tensors["std"]
    got = find(atlas, x)
    unit = std + 0.5 * filters.inside_quantile(std, 0.5, foreground=INSIDE)
    torch.testing.assert_close(got.map, (x - mean).abs() / unit * INSIDE)
    assert torch.equal(got.pseudo_healthy, mean)
    with pytest.raises(ValueError, match="fitted atlas_z: expected statistics fitted"):
        find(AtlasZ(), x)
    small = AtlasZ().learn(None, healthy(noise(0, 3, 3, 3), noise(1, 3, 3, 3)), key=0)
    with pytest.raises(ValueError, match="expected a volume on the atlas grid"):
        find(AtlasZ(fit=small), x)
    assert atlas_of().fingerprint != atlas_of(5).fingerprint
    assert (
        IntensityBaseline().fingerprint
        == IntensityBaseline(threshold=threshold.Fixed(1.0)).fingerprint
    )
    assert IntensityBaseline().fingerprint != IntensityBaseline(sign=-1).fingerprint


def test_the_mask_is_post_processed_in_the_fixed_order():
    x = torch.full((1, 1, *SHAPE), -1.0)
    x[..., 4:7, 4:7, 3:6] = 1.0
    x[..., 2, 9, 5] = 1.0
    steps = (post.MinComponent(0.01), post.Smooth(0.5), post.Erode(2.0))
    methods = [
        IntensityBaseline(post=order, threshold=threshold.Fixed(0.4))
        for order in (steps, steps[::-1])
    ]
    a, b = (find(m, x) for m in methods)
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(a.map, b.map)
    eroded = steps[2](find(IntensityBaseline(), x).map, foreground=INSIDE, spacing_mm=MM)
    smooth = steps[1](eroded, foreground=INSIDE, spacing_mm=MM)
    torch.testing.assert_close(a.map, smooth)
    assert not torch.equal(find(IntensityBaseline(post=steps[1:2]), x).map, a.map)
    assert bool(a.mask[..., 5, 5, 4].all())
    assert not bool(a.mask[..., 2, 9, 5].any())
    assert bool(
        find(IntensityBaseline(threshold=threshold.Fixed(0.4)), x).mask[..., 2, 9, 5].all()
    )
