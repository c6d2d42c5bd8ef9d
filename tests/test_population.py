import numpy as np
import pytest
import torch

from volumediff import randomness
from volumediff.data._fields import exponential, gaussian, sample, smooth_noise, warp
from volumediff.data.population import Population, Variation, _rician

SHAPE, SPACING = (20, 24, 20), (9.0, 9.0, 9.0)


@pytest.fixture(scope="module")
def population():
    return Population(3, SHAPE, SPACING)


def jacobian(u):
    """Determinant of d(p + u)/dp by central differences, inside the border."""
    rows = [(u[:, 2:, 1:-1, 1:-1] - u[:, :-2, 1:-1, 1:-1]) / 2]
    rows.append((u[:, 1:-1, 2:, 1:-1] - u[:, 1:-1, :-2, 1:-1]) / 2)
    rows.append((u[:, 1:-1, 1:-1, 2:] - u[:, 1:-1, 1:-1, :-2]) / 2)
    matrix = torch.stack(rows).permute(2, 3, 4, 1, 0) + torch.eye(3)
    return torch.linalg.det(matrix)


def test_gaussian_equals_scipy():
    from scipy.ndimage import gaussian_filter

    x = randomness.normal((2, 9, 11, 7), "x")
    for c in range(2):
        expected = gaussian_filter(
            x[c].numpy().astype(np.float64), (1.5, 0.8, 1.0), mode="nearest", truncate=3.5
        )
        # Radii are rounded up here and to the nearest integer in scipy: 5e-4 of the weight.
        np.testing.assert_allclose(gaussian(x, (1.5, 0.8, 1.0))[c], expected, atol=2e-3)


def test_gaussian_keeps_constants_on_one_slice():
    x = torch.full((1, 1, 5, 6), 0.7)
    torch.testing.assert_close(gaussian(x, (2.0, 1.0, 0.0)), x)


def test_smooth_noise_has_unit_variance_everywhere():
    x = smooth_noise((2000, 4, 6, 5), (1.0, 2.0, 0.0), "noise")
    deviation = x.std(0)
    assert (deviation - 1).abs().max() < 0.08  # 2000 samples: standard error 0.016
    # Correlation at distance one of noise smoothed by sigma is exp(-1 / (4 sigma^2)).
    near = (x[:, 1:] * x[:, :-1]).mean()
    assert near == pytest.approx(np.exp(-0.25), abs=0.02)
    far = (x[:, :, 1:] * x[:, :, :-1]).mean()
    assert far == pytest.approx(np.exp(-1 / 16), abs=0.02)


def test_warp_by_whole_voxels_is_a_shift():
    x = randomness.normal((2, 5, 6, 7), "x")
    u = torch.zeros(3, 5, 6, 7)
    u[1] = 1
    u[2] = -2
    torch.testing.assert_close(warp(x, u)[:, :, :-1, 2:], x[:, :, 1:, :-2], atol=1e-5, rtol=1e-5)


def test_sample_outside_is_zero_or_border():
    x = torch.full((1, 4, 4, 4), 2.0)
    far = torch.full((3, 1, 1, 1), 9.0)
    assert sample(x, far, border=False).item() == 0
    assert sample(x, far).item() == 2


def test_exponential_has_the_inverse_flow():
    v = 2 * smooth_noise((3, 32, 32, 32), (4.0, 4.0, 4.0), "velocity")
    forward, backward = exponential(v), exponential(-v)
    inside = (slice(None), *[slice(10, -10)] * 3)  # what moves less than that stays on the grid
    assert forward[inside].norm(dim=0).max() > 4  # voxels, so that the test means something
    assert jacobian(forward).min() > 0
    assert (forward + warp(backward, forward))[inside].abs().max() < 0.3
    # A plain displacement by v is not inverted by -v: the oracle sees the difference.
    assert (v + warp(-v, v))[inside].abs().max() > 0.5


def test_exponential_of_a_scaling_is_exp():
    p = torch.arange(21.0) - 10
    v = torch.zeros(3, 21, 21, 21)
    v[0] = 0.3 * p.view(-1, 1, 1)
    u = exponential(v)[0, :, 10, 10]
    inside = p.abs() < 6  # the border value goes on outside and is felt near it
    torch.testing.assert_close(u[inside], (np.exp(0.3) - 1) * p[inside], atol=0.05, rtol=0.05)


def test_subject_is_a_function_of_seed_and_index(population):
    first = population.subject(4)
    state = torch.random.get_rng_state()
    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    torch.rand(7)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    kept = torch.random.get_rng_state()
    again = Population(3, SHAPE, SPACING).subject(4)
    assert torch.equal(torch.random.get_rng_state(), kept)
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    torch.random.set_rng_state(state)
    for name in ("x", "gm", "wm", "foreground"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.x, population.subject(5).x)
    assert not torch.equal(first.x, Population(4, SHAPE, SPACING).subject(4).x)


def test_subject_is_in_range_with_background(population):
    s = population.subject(0)
    assert s.x.dtype == torch.float32
    assert s.x.amin() == -1
    assert s.x.amax() <= 1
    assert bool((s.x[~s.foreground] == -1).all())
    assert bool((s.gm[~s.foreground] == 0).all())
    assert torch.quantile(s.x[s.foreground], 0.98) == pytest.approx(0.5, abs=0.01)
    litres = float(s.foreground.sum()) * 9**3 / 1e6
    assert 1.5 < litres < 2.4  # the template's brain and fluid are 1.9 l


def test_tissues_have_the_order_of_t1(population):
    for i in range(3):
        s = population.subject(i)
        white, grey = s.x[s.wm > 0.7].mean(), s.x[s.gm > 0.7].mean()
        tissue = torch.where(s.foreground, s.gm + s.wm, 1.0)
        fluid = s.x[tissue < 0.35].mean()
        assert white > grey + 0.1
        assert grey > fluid + 0.2


def test_deformation_is_smooth_invertible_and_of_the_stated_size():
    still = Variation(rotation_degrees=0.0, scaling=0.0, translation_mm=0.0, folding_mm=0.0)
    fine = Population(0, (36, 40, 36), (4.0, 4.0, 4.0), still)
    u = torch.stack([fine.displacement_mm(i) for i in range(12)])
    assert u.square().mean().sqrt() == pytest.approx(3.0, rel=0.25)
    full = Population(0, (36, 40, 36), (4.0, 4.0, 4.0))
    for i in range(4):
        assert jacobian(full.displacement_mm(i) / 4).min() > 0.2


def test_a_subject_is_the_same_person_on_every_grid():
    quiet = Variation(noise=0.0, bias=0.0)
    coarse = Population(1, (20, 24, 20), (8.0, 8.0, 8.0), quiet)
    # The same centres of voxels: a grid of twice the resolution, whose blocks of 8 are averaged.
    fine = Population(1, (40, 48, 40), (4.0, 4.0, 4.0), quiet)
    a, b = coarse.displacement_mm(2), fine.displacement_mm(2)
    torch.testing.assert_close(a, torch.nn.functional.avg_pool3d(b, 2), atol=0.3, rtol=0)
    x = torch.nn.functional.avg_pool3d(fine.subject(2).wm, 2)
    y = coarse.subject(2).wm
    assert torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1] > 0.95


def test_noise_is_rician():
    signal = torch.tensor([0.0, 0.1, 1.0]).view(3, 1, 1, 1).expand(3, 40, 40, 40)
    y = _rician(signal, 0.1, 5)
    # Without signal it is Rayleigh noise; the second moment is s^2 + 2 sigma^2 for any signal.
    assert y[0].mean() == pytest.approx(0.1 * np.sqrt(np.pi / 2), rel=0.01)
    second = y.square().mean((1, 2, 3))
    torch.testing.assert_close(second, torch.tensor([0.02, 0.03, 1.02]), rtol=0.01, atol=0)
    assert y[2].std() == pytest.approx(0.1, rel=0.01)


def test_noise_of_subjects_has_the_stated_size():
    base = {"bias": 0.0}
    clean = Population(2, SHAPE, SPACING, Variation(noise=0.0, **base)).subject(1)
    noisy = Population(2, SHAPE, SPACING, Variation(noise=0.05, **base)).subject(1)
    difference = (noisy.x - clean.x)[clean.foreground]
    # sigma lies between half and the whole of 0.05, in units of 1.5 / y1 = 1.5 / 0.9.
    assert 0.025 * 1.5 < difference.std() < 0.05 * 2.0
    assert torch.equal(noisy.foreground, clean.foreground)


def test_subjects_differ_in_contrast_and_bias(population):
    ratios, shades = [], []
    for i in range(8):
        s = population.subject(i)
        white = s.wm > 0.7
        grey = s.gm > 0.7
        ratios.append(float(s.x[white].mean() - s.x[grey].mean()))
        half = torch.zeros_like(white)
        half[:, :, : SHAPE[1] // 2] = True
        shades.append(float(s.x[white & half].mean() - s.x[white & ~half].mean()))
    assert np.std(ratios) > 0.03
    assert np.std(shades) > 0.03


def test_affine_points_at_the_brain(population):
    middle = population.affine @ [*(np.array(SHAPE) - 1) / 2, 1]
    np.testing.assert_allclose(middle[:3], [0, -18, 5], atol=4)
    s = population.subject(0)
    edges = [s.foreground[:, 0], s.foreground[:, -1], s.foreground[:, :, 0]]
    assert not any(bool(edge.any()) for edge in edges)


def test_bad_grid_is_refused():
    with pytest.raises(ValueError, match="positive shape and spacing"):
        Population(0, (8, 8, 0), (3.0, 3.0, 3.0))
