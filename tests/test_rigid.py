"""The rigid kernel: moves against array operations, and algorithm 2 of cold diffusion."""

import math

import pytest
import torch
from scipy.stats import kstest

from volumediff.kernels.rigid import MOVES, Rigid, _inverse, _moved
from volumediff.samplers.ancestral import Ancestral
from volumediff.schedules.cosine import Cosine

SCHEDULE = Cosine(zero_terminal_snr=True)


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def smooth(shape=(8, 9, 10), b=2, seed=0):
    z = torch.randn((b, 1, *shape), generator=torch.Generator().manual_seed(seed)).double()
    return torch.nn.functional.avg_pool3d(z, 3, 1, 1)


def noise_with(numbers, shape=(8, 8, 8)):
    """A field whose move has these numbers, in [-1, 1]."""
    field = torch.zeros((1, 1, *shape), dtype=torch.float64)
    n = field.numel()
    for i, u in enumerate(numbers):
        count = len(range(i, n, MOVES))
        value = float(torch.special.ndtri(torch.tensor((u + 1) / 2, dtype=torch.float64)))
        field.view(-1)[i::MOVES] = value / math.sqrt(count)
    return field


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_shifts_are_those_of_the_array(axis):
    kernel = Rigid(SCHEDULE, shift=0.5, degrees=0.0)
    numbers = [0.0] * MOVES
    numbers[axis] = 0.5  # of half the length: two of eight voxels
    z = torch.zeros((1, 1, 8, 8, 8), dtype=torch.float64)
    z[..., 3:5, 3:5, 3:5] = 1
    moved = _moved(z, kernel._move(noise_with(numbers), torch.ones(1, dtype=torch.float64)))
    dim = 4 - axis  # along w, h, d
    torch.testing.assert_close(moved, z.roll(-2, dim), rtol=0, atol=1e-12)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_right_angles_are_those_of_the_array(axis):
    kernel = Rigid(SCHEDULE, shift=0.0, degrees=180.0)
    numbers = [0.0] * MOVES
    numbers[3 + axis] = 0.5
    z = smooth((8, 8, 8), b=1)
    moved = _moved(z, kernel._move(noise_with(numbers), torch.ones(1, dtype=torch.float64)))
    planes = {0: (3, 2), 1: (2, 4), 2: (4, 3)}[axis]
    turned = {k: torch.rot90(z, k, planes) for k in (1, 3)}
    errors = {k: float((moved - v).abs().max()) for k, v in turned.items()}
    assert min(errors.values()) < 1e-10, errors
    assert max(errors.values()) > 0.1


def test_moves_are_rigid_on_grids_with_unequal_sides():
    kernel, shape = Rigid(SCHEDULE, shift=0.0, degrees=90.0), (12, 20, 31)
    noise = torch.randn((1, 1, *shape), generator=torch.Generator().manual_seed(1)).double()
    move = kernel._move(noise, torch.ones(1, dtype=torch.float64))[0, :, :3]
    half = at(*shape[::-1]) / 2
    turn = move * half[:, None] / half[None]  # in voxels
    torch.testing.assert_close(turn @ turn.T, torch.eye(3).double(), rtol=0, atol=1e-10)


def test_moves_are_uniform_and_apart():
    kernel = Rigid(SCHEDULE, shift=0.25, degrees=0.0)
    noise = torch.randn((4000, 1, 2, 3, 4), generator=torch.Generator().manual_seed(2)).double()
    shifts = kernel._move(noise, torch.ones(4000, dtype=torch.float64))[:, :, 3] / 0.5
    for i in range(3):
        assert kstest((shifts[:, i] + 1) / 2, "uniform").pvalue > 1e-3
    correlation = torch.corrcoef(shifts.T) - torch.eye(3)
    assert float(correlation.abs().max()) < 0.06
    again = kernel._move(noise[5:6], torch.ones(1, dtype=torch.float64))
    torch.testing.assert_close(again[0, :, 3] / 0.5, shifts[5])


def test_the_ends_of_the_path():
    kernel, z = Rigid(SCHEDULE), smooth()
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3)).double()
    assert torch.equal(kernel.corrupt(z, at(0.0, 0.0), noise), z)
    end = kernel.corrupt(z, at(1.0, 1.0), noise)
    torch.testing.assert_close(end, kernel.prior(noise), rtol=0, atol=1e-12)
    ball = _moved(end, _inverse(kernel._move(noise, torch.ones(2, dtype=torch.float64))))
    assert float(ball[0, 0, 4, 4, 5]) > 0.5
    assert float(ball[0, 0, 0, 0, 0]) < -0.9


class Affine(Rigid):
    """Degradation along a fixed direction: affine in severity."""

    def degraded(self, z_0, t, noise):
        return z_0 + t.view(-1, 1, 1, 1, 1) * torch.sin(noise)


def test_algorithm_two_needs_no_restorer_where_degradation_is_affine():
    kernel, z = Affine(SCHEDULE), smooth()
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(3)).double()
    t, s = at(0.9, 0.7), at(0.4, 0.1)
    z_t = kernel.corrupt(z, t, noise)
    anything = kernel.predict(torch.randn_like(z), z_t, t)
    torch.testing.assert_close(
        kernel.step(anything, z_t, t, s, noise), kernel.corrupt(z, s, noise), rtol=0, atol=1e-12
    )
    first = kernel.degraded(anything.x0, s, noise)  # algorithm 1
    assert float((first - kernel.corrupt(z, s, noise)).abs().max()) > 0.1


def test_a_chain_with_the_true_shape_follows_the_path():
    kernel, z = Rigid(SCHEDULE), smooth()

    def noise(step):
        generator = torch.Generator().manual_seed(100 + step)
        return torch.randn(z.shape, generator=generator).double()

    seen = []

    def watch(context):
        path = kernel.corrupt(z, context.t, noise(-1))
        torch.testing.assert_close(context.z_t, path, rtol=0, atol=1e-10)
        seen.append(context.step)
        return context.prediction.x0, context.z_t

    sampler = Ancestral(5)
    end = sampler.sample(
        lambda z_t, t, condition: kernel.predict(z, z_t, t),
        kernel,
        kernel.prior(noise(-1)),
        sampler.times(SCHEDULE),
        noise=noise,
        on_x0=watch,
    )
    assert seen == list(range(5))
    torch.testing.assert_close(end, z, rtol=0, atol=1e-12)


def test_back_to_a_higher_severity():
    kernel = Rigid(SCHEDULE, shift=0.1, degrees=10.0)
    z = torch.nn.functional.avg_pool3d(smooth((24, 24, 24)), 9, 1, 4)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(4)).double()
    s, t = at(0.2, 0.3), at(0.5, 0.6)
    found = kernel.renoise(kernel.corrupt(z, s, noise), s, t, noise)
    inner = (..., *[slice(6, -6)] * 3)
    torch.testing.assert_close(found[inner], kernel.corrupt(z, t, noise)[inner], rtol=0, atol=0.02)


def test_wrong_arguments():
    with pytest.raises(ValueError, match=r"shift in \[0, 1\) and degrees in \[0, 180\], got 1.5"):
        Rigid(SCHEDULE, shift=1.5)
    with pytest.raises(ValueError, match="radius and margin above 0"):
        Rigid(SCHEDULE, radius=0.0)
