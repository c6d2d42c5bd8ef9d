"""Metrics of generated volumes against closed forms, brute force and other libraries."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from volumediff.features.med3d import Med3D, is_med3d, med3d
from volumediff.metrics.frechet_distance import centred_interval, extrapolated, frechet_distance
from volumediff.metrics.mean_discrepancy import (
    bandwidth,
    discrepancy,
    gaussian,
    permutation_p,
    polynomial,
)
from volumediff.metrics.memorization import Thumbnails, memorization, thumbnails
from volumediff.metrics.ms_ssim import WEIGHTS, ms_ssim, scales_of
from volumediff.metrics.power_spectrum import frequencies, power_spectrum
from volumediff.metrics.precision_recall import covered


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# MS-SSIM


@pytest.mark.parametrize(("shape", "scales"), [((24, 25, 22), 2), ((12, 11, 15), 1)])
def test_similarity_is_that_of_monai(shape, scales):
    from monai.metrics.regression import MultiScaleSSIMMetric

    x = F.avg_pool3d(random(2, *shape), 3, 1, 1).clamp(-1, 1)
    y = (x + 0.2 * F.avg_pool3d(random(2, *shape, seed=1), 3, 1, 1)).clamp(-1, 1)
    assert scales_of(shape) == scales
    weights = np.array(WEIGHTS[:scales]) / sum(WEIGHTS[:scales])
    reference = MultiScaleSSIMMetric(
        3, data_range=2.0, kernel_size=11, kernel_sigma=1.5, weights=tuple(weights)
    )
    expected = float(reference(x[None], y[None]))
    assert 0.2 < expected < 0.99
    assert ms_ssim(x, y, span=2.0) == pytest.approx(expected, abs=1e-5)
    assert ms_ssim(x, x, span=2.0) == pytest.approx(1.0)


def test_similarity_refuses_what_the_window_does_not_fit():
    assert scales_of((10, 64, 64)) == 0
    assert scales_of((256, 256, 256)) == 5
    with pytest.raises(ValueError, match="at least 11 voxels"):
        ms_ssim(random(1, 10, 20, 20), random(1, 10, 20, 20), span=2.0)


# MMD and KID


def brute_force(kernel, n):
    total = len(kernel)
    first, second = range(n), range(n, total)
    own = [
        np.mean([kernel[i, j] for i, j in itertools.permutations(part, 2)])
        for part in (first, second)
    ]
    return sum(own) - 2 * np.mean([kernel[i, j] for i in first for j in second])


def test_discrepancy_is_the_sum_over_pairs():
    vectors = random(13, 4).numpy()
    for kernel in (gaussian(vectors), polynomial(vectors)):
        assert discrepancy(kernel, 6, replicates=0).value == pytest.approx(brute_force(kernel, 6))
    x, y = vectors[2].astype(float), vectors[9].astype(float)
    assert polynomial(vectors)[2, 9] == pytest.approx((x @ y / 4 + 1) ** 3)
    pairs = [np.linalg.norm(a - b) for a, b in itertools.combinations(vectors.astype(float), 2)]
    assert bandwidth(vectors) == pytest.approx(np.median(pairs), rel=1e-5)
    expected = math.exp(-(np.linalg.norm(x - y) ** 2) / (2 * np.median(pairs) ** 2))
    assert gaussian(vectors)[2, 9] == pytest.approx(expected, rel=1e-5)


def test_discrepancy_of_gaussians_has_its_closed_form_without_bias():
    # E k(x, y) for x - y ~ N(delta, 2 I) and the kernel exp(-|x - y|^2 / (2 s^2))
    d, s, delta, rng = 3, 1.5, 0.8, np.random.default_rng(0)
    spread = (s**2 / (s**2 + 2)) ** (d / 2)
    expected = 2 * spread * (1 - math.exp(-(delta**2) / (2 * (s**2 + 2))))
    found = []
    for _ in range(1500):
        v = rng.standard_normal((11, d))
        v[:5, 0] += delta
        squares = ((v[:, None] - v[None]) ** 2).sum(-1)
        found.append(discrepancy(np.exp(-squares / (2 * s**2)), 5, replicates=0).value)
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - expected) < 4 * error
    assert error < 0.1 * expected


def test_replicates_are_those_of_drawn_vectors_without_their_own_pairs():
    vectors = random(60, 2).numpy().astype(float)
    interval = discrepancy(gaussian(vectors), 30, replicates=400).interval()
    assert interval.low < 0 < interval.high  # two sets of one law
    vectors[:30] += 2
    interval = discrepancy(gaussian(vectors), 30, replicates=400).interval()
    assert 0.1 < interval.low < interval.value < interval.high
    assert discrepancy(gaussian(vectors), 4, replicates=400).interval().replicates == 0


def test_the_permutation_test_is_exact():
    rng, small = np.random.default_rng(1), []
    for i in range(300):
        kernel = gaussian(rng.standard_normal((16, 2)))
        small.append(permutation_p(kernel, 8, seed=i, permutations=39) <= 0.1)
    assert 0.05 < np.mean(small) < 0.16  # 4 of 40: exactly .1, with a deviation of .017
    apart = np.concatenate([rng.standard_normal((8, 2)), 5 + rng.standard_normal((8, 2))])
    assert permutation_p(gaussian(apart), 8, permutations=99) == pytest.approx(0.01)
    assert permutation_p(np.ones((16, 16)), 8, permutations=99) == 1.0


# Fréchet distance


def exact(mean, root, n=40):
    """Vectors whose mean and covariance are exactly these."""
    v = random(n, len(mean), seed=len(mean)).double().numpy()
    v = v - v.mean(0)
    v = v @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(v, rowvar=False)))).T
    return v @ root.T + mean


def test_distance_of_gaussians_has_its_closed_form():
    a, b = np.array([[1.0, 0, 0], [0.5, 2, 0], [0, 0.3, 0.7]]), np.diag([2.0, 0.5, 1])
    x, y = exact(np.array([1.0, 2, 3]), a), exact(np.array([0.0, 2, 5]), b)
    s, t = a @ a.T, b @ b.T
    expected = 1 + 4 + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert frechet_distance(x, y) == pytest.approx(expected)
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    # one dimension: (m - n)^2 + (s - t)^2
    x, y = exact(np.array([1.0]), np.array([[2.0]])), exact(np.array([4.0]), np.array([[0.5]]))
    assert frechet_distance(x, y) == pytest.approx(9 + 1.5**2)


def test_extrapolation_takes_the_bias_away():
    rng = np.random.default_rng(3)
    plain, without = [], []
    for i in range(6):
        x, y = rng.standard_normal((2, 200, 8))
        plain.append(frechet_distance(x, y))
        without.append(extrapolated(x, y, seed=i))
    assert np.mean(plain) > 0.1  # both sets are of one law: the distance is 0
    assert abs(np.mean(without)) < 0.3 * np.mean(plain)
    interval = centred_interval(frechet_distance, x, y, replicates=20)
    assert interval.low < interval.value < interval.high


# Precision and recall


def test_covered_is_the_union_of_the_balls():
    support, queries = random(25, 3).numpy(), 1.5 * random(40, 3, seed=1).numpy()
    for k in (1, 3):
        expected = []
        for q in queries:
            inside = False
            for i, s in enumerate(support):
                others = sorted(np.linalg.norm(s - t) for j, t in enumerate(support) if j != i)
                inside |= np.linalg.norm(q - s) <= others[k - 1]
            expected.append(inside)
        found = covered(queries, support, k=k)
        assert 0 < found.mean() < 1
        assert found.tolist() == expected
    assert covered(support, support).all()
    with pytest.raises(ValueError, match="more than 3 vectors, got 3"):
        covered(queries, support[:3])


# Power by frequency


@pytest.mark.parametrize("shape", [(16, 12, 14), (9, 11, 13)])
def test_power_is_the_mean_over_shells(shape):
    spacing = (1.0, 2.0, 1.5)
    v = random(*shape).double()
    found, at = power_spectrum(v, spacing_mm=spacing), frequencies(shape, spacing)
    power = np.abs(np.fft.fftn((v - v.mean()).numpy())) ** 2 / v.numel()
    axes = [np.fft.fftfreq(n, s) for n, s in zip(shape, spacing, strict=True)]
    radius = np.sqrt(sum(a**2 for a in np.meshgrid(*axes, indexing="ij")))
    half = (at[1] - at[0]) / 2
    assert at[-1] == pytest.approx(0.25)  # the lowest Nyquist frequency
    for f, p in zip(at, found.tolist(), strict=True):
        inside = (radius >= f - half) & (radius < f + half)
        assert p == pytest.approx(power[inside].mean())


def test_noise_is_flat_and_blur_falls():
    noise = 3 * random(24, 24, 24)
    found = power_spectrum(noise, spacing_mm=(1.0, 1.0, 1.0))
    torch.testing.assert_close(found[3:], torch.full_like(found[3:], 9.0), rtol=0.2, atol=0)
    blurred = power_spectrum(F.avg_pool3d(noise[None], 3, 1, 1)[0], spacing_mm=(1.0, 1.0, 1.0))
    assert float(blurred[9:].max()) < 0.1 * float(blurred[1])


# Memorization


def anatomy(seed, shape=(24, 28, 20)):
    """A body that all have, with folds of each one's own."""
    own = F.avg_pool3d(random(1, *(n + 8 for n in shape), seed=seed), 5, 1)
    own = F.interpolate(own[None], size=shape, mode="trilinear")[0]
    axes = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = torch.stack(axes).square().sum(0).sqrt()
    return torch.where(radius < 0.9, 0.4 - 0.5 * radius + 4 * own, torch.tensor(-1.0))


def blurred(x):
    """A Gaussian of 0.8 voxels, and no mean over 3 x 3 x 3."""
    return torch.from_numpy(gaussian_filter(x.numpy(), (0, 0.8, 0.8, 0.8)))


CHANGES = {
    "none": lambda x: x,
    "noise": lambda x: x + 0.1 * random(*x.shape, seed=99),
    "blur": lambda x: blurred(x),
    "blur that lights up the border": lambda x: F.avg_pool3d(x, 3, 1, 1),
    "scale": lambda x: 0.7 * (x + 1) - 0.9,
    "mirror": lambda x: x.flip(1),
    "mirrors": lambda x: x.flip(2, 3),
    "shift": lambda x: x.roll((1, -1, 1), (1, 2, 3)),
    "several": lambda x: 0.8 * x.flip(3).roll(1, 2) + 0.05 * random(*x.shape, seed=98),
    "blurred and more": lambda x: 0.9 * blurred(x.roll(1, 1)) + 0.05 * random(*x.shape, seed=97),
}


def neighbours(samples, training, held):
    measured = Thumbnails(training)
    between = np.stack([measured.between(t, held) for t in held])
    np.fill_diagonal(between, np.inf)
    return memorization(
        np.stack([measured.to_training(t) for t in samples]),
        np.stack([measured.between(t, held) for t in samples]),
        held_to_training=np.stack([measured.to_training(t) for t in held]),
        between_held_out=between,
        rate=0.01,
    )


@pytest.fixture(scope="module")
def bodies():
    return [thumbnails(anatomy(i)) for i in range(34)]


def test_copies_are_found_although_they_are_changed(bodies):
    training, held = bodies[:14], bodies[14:24]
    samples = [thumbnails(change(anatomy(i))) for i, change in enumerate(CHANGES.values())]
    found = neighbours(samples, training, held)
    assert found.flagged == list(range(len(CHANGES))), dict(
        zip(CHANGES, (s.p for s in found.samples), strict=True)
    )
    assert [s.training for s in found.samples] == list(range(len(CHANGES)))


def test_distances_know_neither_scale_nor_what_all_have_in_common(bodies):
    measured, x = Thumbnails(bodies[:14]), anatomy(30)
    found = measured.to_training(thumbnails(x))
    np.testing.assert_allclose(measured.to_training(thumbnails(0.5 * x + 3)), found, atol=1e-5)
    assert found.min() > 0.6  # bodies are alike, their folds are not


def test_new_volumes_are_no_copies(bodies):
    assert neighbours(bodies[24:], bodies[:14], bodies[14:24]).flagged == []


def test_so_many_new_volumes_are_flagged_as_the_rate_says():
    rng, rate, n = np.random.default_rng(0), 0.05, 6
    flagged = []
    for _ in range(400):
        r = rng.normal(-0.9, 0.1, n + 50)  # all nearer than a copy is at least
        # a distance of e^r to the training volume, and of 1 to held-out ones
        to_training, ones = np.exp(r)[:, None], np.ones((n + 50, n))
        found = memorization(
            to_training[n:],
            ones[n:],
            held_to_training=to_training[:n],
            between_held_out=np.ones((n, n)),
            rate=rate,
        )
        flagged.append(len(found.flagged) / 50)
    assert np.mean(flagged) == pytest.approx(rate, abs=4 * np.std(flagged) / 20)
    with pytest.raises(ValueError, match="at least 5 held-out volumes, got 4"):
        memorization(
            to_training[n:],
            ones[n:, :4],
            held_to_training=to_training[:4],
            between_held_out=np.ones((4, 4)),
            rate=rate,
        )


# Features of Med3D


def published(name):
    """The network of MONAI with the names of Med3D, and with its dilations."""
    from monai.networks.nets import resnet

    torch.manual_seed(0)
    shortcut = "A" if name == "resnet18" else "B"
    network = getattr(resnet, name)(
        pretrained=False,
        spatial_dims=3,
        n_input_channels=1,
        conv1_t_size=7,
        conv1_t_stride=2,
        feed_forward=False,
        shortcut_type=shortcut,
        bias_downsample=False,
    )
    for layer, dilation in ((network.layer3, 2), (network.layer4, 4)):
        for module in layer.modules():
            if isinstance(module, torch.nn.Conv3d):
                module.stride = (1, 1, 1)
                if module.kernel_size == (3, 3, 3):
                    module.dilation = module.padding = (dilation,) * 3
        for block in layer:
            block.stride = 1
    for module in network.modules():  # statistics as after training
        if isinstance(module, torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.running_mean, -0.2, 0.2)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    return network.eval()


@pytest.mark.parametrize("name", ["resnet10", "resnet50"])
def test_the_network_is_that_of_the_published_weights(name):
    reference = published(name)
    tensors = reference.state_dict()
    assert is_med3d(tensors)
    network = med3d({f"module.{n}": t for n, t in tensors.items()})
    x = random(1, 1, 20, 17, 24)
    features = {}
    reference.layer4.register_forward_hook(lambda m, a, y: features.update(y=y))
    with torch.no_grad():
        reference(x)
        torch.testing.assert_close(network(x), features["y"], rtol=1e-4, atol=1e-5)
    assert network.channels == {"resnet10": 512, "resnet50": 2048}[name]


def test_shortcuts_without_weights_leave_out_and_pad():
    network = Med3D([1, 1, 1, 1], deep=False, projected=False).eval()
    block = network.layer2[0]
    for parameter in block.parameters():
        torch.nn.init.zeros_(parameter)
    x = random(1, 64, 5, 6, 7).abs()
    y = block(x)
    assert torch.equal(y[:, :64], x[:, :, ::2, ::2, ::2])
    assert not y[:, 64:].any()


def test_vectors_do_not_depend_on_scale_and_offset():
    network = Med3D([1, 1, 1, 1], deep=False, projected=True).eval()
    x = torch.where(random(2, 16, 16, 16) > 0, random(2, 16, 16, 16, seed=1).abs(), 0.0)
    found = network.vector(x)
    assert found.shape == (1024,)
    torch.testing.assert_close(network.vector(40 * x - 3), found, rtol=1e-3, atol=1e-4)
    assert not torch.allclose(found[:512], found[512:])


def test_incomplete_weights_are_refused():
    tensors = Med3D([1, 1, 1, 1], deep=False, projected=True).state_dict()
    del tensors["layer2.0.bn1.running_mean"]
    with pytest.raises(ValueError, match=r"got none named layer2\.0\.bn1\.running_mean"):
        med3d(tensors)
    assert not is_med3d({"network.conv.weight": 1})
