"""Accuracy of the samplers: orders of convergence, exact moments, other libraries, rare classes.

Published and earlier measured figures are quoted where a test compares with them.
"""

import math
from functools import partial

import numpy as np
import pytest
import torch
from oracles import flow, gaussian, global_mode, gradual, state_like, two_points, white

from volumediff.kernels.gaussian import Gaussian
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.samplers.heun import Heun
from volumediff.samplers.midpoint import Midpoint
from volumediff.samplers.plms import PLMS
from volumediff.samplers.unipc import UniPC
from volumediff.schedules._base import shift_for
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule
from volumediff.schedules.rectified import Rectified
from volumediff.time_grids import LogSNRTimeGrid

LINEAR = LinearSchedule()
KERNEL = Gaussian(LINEAR, prediction="eps")


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def log_snr_grid(steps, end):
    """From t = 1 to `end` in equal steps of log-SNR, without the step to 0."""
    first, last = LINEAR.log_snr(at(1.0, end)).tolist()
    times = LINEAR.time(torch.linspace(first, last, steps + 1, dtype=torch.float64)[1:])
    return torch.cat([at(1.0), times])


def rms(x):
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize(
    ("sampler", "order", "tolerance", "expected"),
    [
        (DDIM, 1, 0.03, 6.3e-3),
        (Heun, 2, 0.05, 2.1e-4),
        (DPMSolverPP, 2, 0.05, 9.5e-5),
        (PLMS, 2, 0.05, 7e-5),
        (Midpoint, 2, 0.35, 1.2e-5),  # up to the first step, from a bend of the table
        (partial(UniPC, solver="bh1"), 3, 0.05, 1.6e-5),
        (UniPC, 3, 0.05, 9.1e-6),
        (partial(UniPC, order=3), 4, 0.15, 3.3e-7),
    ],
    ids=lambda p: getattr(p, "__name__", None),
)
def test_order_of_convergence(sampler, order, tolerance, expected):
    mean, std, errors = 0.3, 0.3, []
    z = state_like(*torch.linspace(-2, 2, 9).tolist())
    for steps in (64, 128, 256):
        times = log_snr_grid(steps, 0.01)
        out = sampler(steps).sample(gaussian(LINEAR, mean, std), KERNEL, z, times)
        errors.append(rms(out - flow(LINEAR, mean, std, z, 1.0, float(times[-1]))))
    assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(order, abs=tolerance)
    assert errors[1] == pytest.approx(expected, rel=0.15)


def leading(steps):
    """Paper steps k = 0, T/N, 2T/N, ... downwards, and then 0."""
    return torch.cat([(torch.arange(steps).flip(0) * (1000 // steps) + 1).double() / 1000, at(0)])


@pytest.mark.parametrize(
    ("variance", "expected"),
    [
        (0.0, {10: 0.5730, 50: 0.8432, 250: 0.9566, 1000: 0.9875}),
        (1.0, {10: 1.4140, 50: 1.0747, 250: 1.0141, 1000: 1.0031}),
    ],
)
def test_ancestral_moments(variance, expected):
    # A step is affine: its gain and noise follow from states 0 and 1, and the variance from those.
    std = 0.3
    for steps, ratio in expected.items():
        grid = leading(steps)
        z = state_like(*[0.0, 1.0, 0.0] * steps)
        times = torch.stack([grid[:-1].repeat_interleave(3), grid[1:].repeat_interleave(3)])
        # All steps as one batch with its own times; the one that ends at 0 apart from the others.
        noise = state_like(*[0.0, 0.0, 1.0] * steps)
        sampler, denoise = Ancestral(1, variance=variance), gaussian(LINEAR, 0.0, std)
        parts = [
            sampler.sample(denoise, KERNEL, z[c], times[:, c], noise=lambda i, n=noise[c]: n)
            for c in (slice(0, -3), slice(-3, None))
        ]
        offset, one, drawn = torch.cat(parts).reshape(steps, 3).T
        total = 1.0
        for gain, spread in zip((one - offset).tolist(), (drawn - offset).tolist(), strict=True):
            total = total * gain**2 + spread**2
        found = math.sqrt(total) / std
        assert found == pytest.approx(ratio, abs=6e-5)
        assert found == pytest.approx(_closed_form(steps, variance, std), abs=1e-6)


def _closed_form(steps, variance, std):
    """The same recursion from the schedule's table alone, in numpy."""
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    k = np.arange(steps)[::-1] * (1000 // steps)
    total = 1.0
    for now, then in zip(abar[k], np.append(abar[k[1:]], 1.0), strict=True):
        a = now / then
        of_x0, of_z = then**0.5 * (1 - a) / (1 - now), a**0.5 * (1 - then) / (1 - now)
        gain = of_x0 * now**0.5 * std**2 / (now * std**2 + 1 - now) + of_z
        spread = (1 - a) * (1 - then) / (1 - now) if variance == 0 else (1 - a) * (then < 1)
        total = total * gain**2 + spread
    return total**0.5 / std


def test_ddim_with_full_noise_is_ancestral():
    z = state_like(-1.0, 0.4)
    times, noise, denoise = DDIM(9).times(LINEAR), white(z), gaussian(LINEAR, 0.2, 0.5)
    ancestral = Ancestral(9).sample(denoise, KERNEL, z, times, noise=noise)
    ddim = DDIM(9, eta=1.0).sample(denoise, KERNEL, z, times, noise=noise)
    torch.testing.assert_close(ddim, ancestral, rtol=0, atol=1e-12)
    half = DDIM(9, eta=0.5).sample(denoise, KERNEL, z, times, noise=noise)
    assert (half - ddim).abs().min() > 1e-3


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("ours", [DDIM, DPMSolverPP], ids=["ddim", "dpmpp"])
def test_equals_diffusers(ours, steps):
    diffusers = pytest.importorskip("diffusers")
    options = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    if ours is DDIM:
        theirs = diffusers.DDIMScheduler(
            **options, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing"
        )
    else:
        theirs = diffusers.DPMSolverMultistepScheduler(
            **options,
            algorithm_type="dpmsolver++",
            solver_order=2,
            timestep_spacing="trailing",
            final_sigmas_type="zero",
        )
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((2, 1, 8, 8, 8), generator=generator)
    mean, std = torch.rand((2, 1, 8, 8, 8), generator=generator) - 0.5, 0.4
    denoise = gaussian(LINEAR, mean, std)
    expected = z
    theirs.set_timesteps(steps)
    for k in theirs.timesteps:
        t = (k.double() + 1).repeat(2) / 1000
        expected = theirs.step(denoise(expected, t, None).eps, k, expected).prev_sample
    sampler = ours(steps)
    out = sampler.sample(denoise, KERNEL, z, sampler.times(LINEAR))
    torch.testing.assert_close(out, expected, rtol=0, atol=5e-4)
    assert (out - z).abs().mean() > 0.1


def compared(theirs, schedule, sampler, outputs):
    """Largest differences of the states of a chain from those of a scheduler of diffusers."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn((2, 1, 6, 6, 6), generator=generator, dtype=torch.float64)
    mean = torch.rand(z.shape, generator=generator, dtype=torch.float64) - 0.5
    denoise, kernel = gaussian(schedule, mean, 0.4), Gaussian(schedule, "v")
    times = theirs.sigmas.double() if schedule is FLOW else (theirs.timesteps.double() + 1) / 1000
    times = torch.cat([times, at(0)]) if float(times[-1]) else times
    expected, x = [], z
    for i, k in enumerate(theirs.timesteps):
        x = theirs.step(outputs(denoise(x, times[i].repeat(2), None)), k, x).prev_sample
        expected.append(x)
    seen = []

    def watch(context):
        seen.append(context.z_t)
        return context.prediction.x0, context.z_t

    out = sampler.sample(denoise, kernel, z, times, on_x0=watch)
    assert (out - z).abs().mean() > 0.1
    return [rms(a - b) for a, b in zip([*seen[1:], out], expected, strict=True)]


FLOW = Rectified()


def velocity(prediction):
    return prediction.eps - prediction.x0


@pytest.mark.parametrize("order", [2, 3])
@pytest.mark.parametrize("solver", ["bh1", "bh2"])
@pytest.mark.parametrize("path", ["linear", "flow"])
def test_unipc_equals_diffusers(path, solver, order):
    diffusers = pytest.importorskip("diffusers")
    options = {"solver_order": order, "solver_type": solver, "final_sigmas_type": "zero"}
    if path == "linear":
        theirs = diffusers.UniPCMultistepScheduler(
            beta_start=1e-4,
            beta_end=0.02,
            beta_schedule="linear",
            timestep_spacing="trailing",
            **options,
        )
        schedule, outputs = LINEAR, lambda p: p.eps
    else:
        theirs = diffusers.UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, **options
        )
        schedule, outputs = FLOW, velocity
    theirs.set_timesteps(10)
    errors = compared(theirs, schedule, UniPC(10, order=order, solver=solver), outputs)
    # theirs is NaN at s = 0 with bh1, and lowers the order of the two steps before
    assert max(errors[:8]) < 2e-6
    assert math.isfinite(errors[-1]) or solver == "bh1"
    if order == 2:
        assert errors[8] < 2e-6
        assert errors[9] < 2e-6 or solver == "bh1"


def test_solvers_of_flows_equal_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=3.0,
        algorithm_type="dpmsolver++",
        final_sigmas_type="zero",
    )
    theirs.set_timesteps(10)
    assert max(compared(theirs, FLOW, DPMSolverPP(10), velocity)) < 2e-6
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    theirs.set_timesteps(10)
    assert max(compared(theirs, FLOW, DDIM(10), velocity)) < 2e-6


def voxels():
    generator = torch.Generator().manual_seed(0)
    mean = torch.rand((1, 1, 8, 8, 8), generator=generator, dtype=torch.float64) - 0.5
    std = 0.05 + 0.55 * torch.rand(mean.shape, generator=generator, dtype=torch.float64)
    noise = torch.randn(mean.shape, generator=generator, dtype=torch.float64)
    return mean + std * noise, gaussian(LINEAR, mean, std)


@pytest.mark.parametrize(
    ("steps", "iterations", "expected", "tolerance"),
    [
        (10, 0, 0.179, 0.2),
        (50, 0, 0.049, 0.2),
        (100, 0, 0.026, 0.2),
        (250, 0, 0.011, 0.2),
        (10, 10, 0.015, 0.4),
        (50, 10, 8.6e-5, 0.4),
        (100, 10, 4.8e-7, 0.4),
    ],
)
def test_ddim_round_trip(steps, iterations, expected, tolerance):
    x, denoise = voxels()
    sampler = DDIM(steps)
    times = sampler.times(LINEAR)
    z = sampler.invert(denoise, KERNEL, x, times, iterations=iterations)
    error = rms(sampler.sample(denoise, KERNEL, z, times) - x)
    assert error == pytest.approx(expected, rel=tolerance)


def test_heun_round_trip_is_third_order():
    # The two half trips are second order each, and what is left of their sum is third order.
    x, denoise = voxels()
    errors = []
    for steps in (10, 50, 100):
        times = log_snr_grid(steps, 0.01)
        z = Heun(steps).invert(denoise, KERNEL, x, times)
        errors.append(rms(Heun(steps).sample(denoise, KERNEL, z, times) - x))
    assert math.log(errors[1] / errors[2]) / math.log(2) == pytest.approx(3, abs=0.15)
    assert errors[0] < 1.3e-2
    assert errors[1] == pytest.approx(1.1e-4, rel=0.2)
    assert errors[2] == pytest.approx(1.4e-5, rel=0.2)


RARE = [
    # sampler, steps, low, prior, fraction found in percent
    (DDIM, 10, -1, 0.01, 0.59),
    (DDIM, 50, -1, 0.01, 0.91),
    (DDIM, 10, 0, 0.01, 0.32),
    (DPMSolverPP, 10, -1, 0.01, 0.81),
    (DPMSolverPP, 50, -1, 0.01, 0.99),
    (Ancestral, 10, -1, 0.01, 0.28),
    (Ancestral, 50, -1, 0.01, 0.77),
]


@pytest.mark.parametrize(("sampler", "steps", "low", "prior", "percent"), RARE)
def test_few_steps_lose_rare_classes(sampler, steps, low, prior, percent):
    # The quoted figures are Monte Carlo ones; deterministic chains are exact here up to 1/n.
    n = 100_000 if sampler is Ancestral else 20_000
    z = gradual(n)
    chain = sampler(steps)
    times = leading(steps) if sampler is Ancestral else chain.times(LINEAR)
    out = chain.sample(two_points(LINEAR, prior, low), KERNEL, z, times, noise=white(z))
    found = (out > (low + 1) / 2).double().mean().item()
    assert 100 * found == pytest.approx(percent, rel=0.1)


def test_masks_are_crisp_when_coded_plus_minus_one():
    z = gradual(20_000)
    sampler = DPMSolverPP(20)
    times = sampler.times(LINEAR)
    unclear = []
    for low in (-1.0, 0.0):
        out = sampler.sample(two_points(LINEAR, 0.1, low), KERNEL, z, times)
        place = (out - low) / (1 - low)
        unclear.append((torch.minimum(place.abs(), (place - 1).abs()) > 0.1).double().mean())
    assert unclear[0] < 1e-3
    assert unclear[1].item() == pytest.approx(1.7e-2, rel=0.15)


def mean_share(schedule, size, sampler):
    """Deviation of the global mean of samples over that of the data, from the mode alone.

    Along (1, ..., 1) / sqrt(n) constant volumes of unit variance have the deviation sqrt(n).
    """
    n, z = size**3, state_like(1.0)
    denoise = gaussian(schedule, 0.0, math.sqrt(n))
    out = sampler.sample(denoise, Gaussian(schedule), z, sampler.times(schedule))
    return out.item() / math.sqrt(n)


@pytest.mark.parametrize(("size", "predicted"), [(16, 0.926), (32, 0.656), (64, 0.294)])
def test_global_mean_collapses_under_the_linear_schedule(size, predicted):
    share = mean_share(LINEAR, size, DPMSolverPP(100))
    assert share == pytest.approx(predicted, abs=2e-3)
    assert mean_share(LINEAR, size, DDIM(100)) == pytest.approx(predicted, rel=0.05)


def test_global_mean_on_whole_volumes():
    # The same on volumes of 16^3 voxels: mean of many samples' spread, one batch of 64.
    generator = torch.Generator().manual_seed(1)
    z = torch.randn((64, 1, 16, 16, 16), generator=generator)
    start = z.mean((1, 2, 3, 4)) * 64
    for schedule, predicted in ((LINEAR, 0.926), (LinearSchedule(zero_terminal_snr=True), 1.0)):
        sampler = DPMSolverPP(40)
        kernel = Gaussian(schedule)
        out = sampler.sample(global_mode(schedule), kernel, z, sampler.times(schedule))
        share = out.mean((1, 2, 3, 4)) / start
        assert mean_share(schedule, 16, sampler) == pytest.approx(predicted, rel=0.025)
        expected = torch.full((64,), mean_share(schedule, 16, sampler))
        torch.testing.assert_close(share, expected, rtol=1e-3, atol=0)
        assert out.std((1, 2, 3, 4)).max() < 1e-3


def test_global_mean_is_kept_by_zero_terminal_snr():
    zero = LinearSchedule(zero_terminal_snr=True)
    assert mean_share(zero, 16, DDIM(50)) == pytest.approx(0.94, abs=0.02)
    assert mean_share(zero, 16, DDIM(250)) >= 0.98
    assert mean_share(zero, 64, DPMSolverPP(250)) >= 0.97


@pytest.mark.parametrize("size", [16, 32, 64])
def test_global_mean_is_kept_by_the_shift(size):
    share = mean_share(LinearSchedule(shift=shift_for(size**3)), size, DPMSolverPP(100))
    assert share == pytest.approx(0.98, abs=5e-3)


def test_cosine_with_uniform_steps_is_a_trap_and_log_snr_steps_are_not():
    assert mean_share(Cosine(), 16, DDIM(50)) == pytest.approx(0.445, abs=0.01)
    assert mean_share(Cosine(), 32, DDIM(50)) == pytest.approx(0.18, abs=0.01)
    grid = {"grid": LogSNRTimeGrid(-18.0, 8.0)}
    for sampler in (Heun(50, **grid), DPMSolverPP(50, **grid), PLMS(50, **grid)):
        assert mean_share(Cosine(), 64, sampler) == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sampler", [Heun, PLMS, DPMSolverPP, DDIM])
@pytest.mark.parametrize("steps", [10, 50])
def test_low_terminal_snr_does_not_blow_up_the_mean(sampler, steps):
    # Without the limit of its weight Heun gives 156 and 114 here.
    assert mean_share(Cosine(), 16, sampler(steps)) < 1.1
