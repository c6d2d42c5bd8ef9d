"""Blur of a known variance, and what too much of it does to the scale that registration finds."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from volumediff.data.grid import Grid
from volumediff.data.sharpness import blurred, own_variance, strides

SPACING = np.array([1.0, 2.0, 3.0])


def grid(shape=(41, 41, 41)) -> Grid:
    return Grid(shape, np.diag([*SPACING, 1.0]))


@pytest.mark.parametrize("variance", [0.1, 1.5, 20.0])
def test_the_kernel_has_the_variance_that_was_asked_for_at_any_width(variance):
    x = np.zeros((41, 41, 41), np.float32)
    x[20, 20, 20] = 1
    added = variance * np.array([0.3, 1.0, 1.7])
    y, same = blurred(x, grid(), added_mm2=added, steps=(1, 1, 1))
    np.testing.assert_array_equal(same.affine, grid().affine)
    assert y.sum() == pytest.approx(1, abs=1e-5)
    away = (np.arange(41) - 20)[:, None] * SPACING
    for axis in range(3):
        profile = y.sum(tuple({0, 1, 2} - {axis}))
        assert (profile * away[:, axis]).sum() == pytest.approx(0, abs=1e-5)
        assert (profile * away[:, axis] ** 2).sum() == pytest.approx(added[axis], rel=2e-3)


def test_samples_are_those_of_the_whole_where_they_lie():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(13, 11, 9)).astype(np.float32)
    added = np.array([2.0, 2.0, 2.0])
    whole, _ = blurred(x, grid(x.shape), added_mm2=added, steps=(1, 1, 1))
    few, sampled = blurred(x, grid(x.shape), added_mm2=added, steps=(5, 3, 1))
    assert few.shape == sampled.shape == (4, 5, 9)  # past the ends, so that nothing is cut off
    np.testing.assert_allclose(sampled.affine[:3, 3], (-2, -2, 0))
    np.testing.assert_allclose(sampled.spacing_mm, (5, 6, 3))
    np.testing.assert_allclose(few[1:-1, 1:-1], whole[3:9:5, 2:9:3], atol=1e-6)
    constant, _ = blurred(x * 0 + 3, grid(x.shape), added_mm2=added, steps=(5, 3, 1))
    np.testing.assert_allclose(constant, 3, rtol=1e-6)


def test_what_voxels_and_interpolation_blur():
    """By hand: 2.5 mm voxels have 0.52 mm², and samples 5 mm apart 4.17 mm² more."""
    one = Grid((4, 4, 4), np.diag([2.5, 2.5, 6.0, 1.0]))
    assert strides(one, 5.0) == (2, 2, 1)
    plain = own_variance(one, (2, 2, 1), interpolated=False)
    np.testing.assert_allclose(plain, (0.5208333, 0.5208333, 3.0))
    both = own_variance(one, (2, 2, 1), interpolated=True)
    np.testing.assert_allclose(both, (4.6875, 4.6875, 9.0))
    # a triangle as wide as a step to each side, which interpolation between samples is on average
    t = np.linspace(-1, 1, 20_001)
    triangle = 1 - np.abs(t)
    assert (triangle * t**2).sum() / triangle.sum() == pytest.approx(1 / 6, abs=1e-6)


def test_the_blurrier_of_two_volumes_is_enlarged_by_the_closed_form():
    """A Gaussian of width a: the integrals are v / (10 a²), that is 0.4 / a² of v / 4."""
    a, v = 6.0, 1.5
    axis = np.arange(-24.0, 25.0)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    square = (points**2).sum(0)
    x = np.exp(-square / (2 * a**2)).astype(np.float32)
    unit = Grid(x.shape, np.eye(4))
    y, _ = blurred(x, unit, added_mm2=np.full(3, v), steps=(1, 1, 1))
    height, width = (a**2 / (a**2 + v)) ** 1.5, a**2 + v
    np.testing.assert_allclose(y, height * np.exp(-square / (2 * width)), atol=2e-3)

    def misfit(log: float) -> float:
        return float(((height * np.exp(-square * np.exp(-2 * log) / (2 * width)) - x) ** 2).sum())

    found = minimize_scalar(misfit, bounds=(-0.1, 0.1), method="bounded").x
    assert found == pytest.approx(v / (10 * a**2), rel=0.1)
    slopes = np.gradient(x.astype(np.float64))
    radial = sum(p * s for p, s in zip(points, slopes, strict=True))
    ratio = sum((s**2).sum() for s in slopes) / (radial**2).sum()
    assert v / 4 * ratio == pytest.approx(v / (10 * a**2), rel=0.01)
