"""Paths that do not preserve variance: straight lines and others, through kernel and samplers.

Oracles are the definition of the two forward kernels, the closed-form denoiser of Gaussian data
and the exact probability flow.
"""

import math

import pytest
import torch
from oracles import flow, gaussian, state_like, two_points, white

from volumediff.classification import ClassPosterior
from volumediff.condition import Condition
from volumediff.config import arguments, available, build
from volumediff.guidance.classifier import ClassifierGuidance
from volumediff.kernels._base import Prediction
from volumediff.kernels.discrete import Discrete
from volumediff.kernels.gaussian import Gaussian
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.samplers.heun import Heun
from volumediff.samplers.midpoint import Midpoint
from volumediff.samplers.plms import PLMS
from volumediff.samplers.unipc import UniPC
from volumediff.schedules._base import Schedule, power
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule
from volumediff.schedules.rectified import Rectified
from volumediff.weightings import MinSNRWeighting


class Growing(Schedule):
    """All of the signal stays, and noise of up to five times its size comes to it."""

    def __call__(self, t):
        t = t.double()
        return torch.ones_like(t), 5 * t**1.5


class Bent(Schedule):
    """Neither: the size of a state falls and rises."""

    def __call__(self, t):
        t = t.double()
        return (1 - 0.9 * t) ** 2, t * (2 - t) ** 0.5


PATHS = [Rectified(), Growing(), Bent()]
by_path = pytest.mark.parametrize("schedule", PATHS, ids=lambda s: type(s).__name__)
TIMES = (0.02, 0.3, 0.7, 1.0)


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def made_weighting(name):
    return None if name is None else build("weighting", name)


def one(schedule, t):
    return tuple(float(level) for level in schedule(at(t)))


@pytest.mark.parametrize("name", available("schedule"))
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("shift", [1.0, 8.0])
def test_schedules_declare_what_is_true(name, zero, shift):
    options = {"zero_terminal_snr": zero, "shift": shift}
    taken = {n: v for n, v in options.items() if n in arguments("schedule", name)}
    made = build("schedule", {"name": name, **taken})
    t = torch.linspace(0, 1, 33).double()
    kept = bool((power(*made(t)) == 1).all())
    assert kept == made.variance_preserving
    assert (one(made, 1.0)[0] == 0) == made.zero_terminal_snr
    step = 1e-6
    inner = torch.linspace(0.05, 0.9, 9).double() + 0.00037  # between the nodes of the tables
    above, below = made(inner + step), made(inner - step)
    for rate, a, b in zip(made.rates(inner), above, below, strict=True):
        torch.testing.assert_close(rate, (a - b) / (2 * step), rtol=1e-5, atol=1e-7)
    with torch.no_grad():
        assert all(torch.isfinite(r).all() for r in made.rates(at(1e-6, 1.0)))


@by_path
def test_rates_of_other_schedules(schedule):
    t = at(0.1, 0.5, 0.9)
    expected = {
        "Rectified": (-torch.ones(3).double(), torch.ones(3).double()),
        "Growing": (torch.zeros(3).double(), 7.5 * t.sqrt()),
        "Bent": (
            -1.8 * (1 - 0.9 * t),
            (2 - t).sqrt() - t / (2 * (2 - t).sqrt()),
        ),
    }[type(schedule).__name__]
    for found, rate in zip(schedule.rates(t), expected, strict=True):
        torch.testing.assert_close(found, rate)
    assert not schedule.variance_preserving
    one = schedule.rates(t[2:3])
    for rate, wide in zip(one, schedule.rates(t[2:3].expand(3)), strict=True):
        assert torch.equal(wide, rate.expand(3)), "a batch at one time"


@by_path
@pytest.mark.parametrize("name", ["eps", "x0", "v", "u"])
def test_the_true_output_gives_the_true_prediction(schedule, name):
    if name == "eps" and schedule.zero_terminal_snr:
        with pytest.raises(ValueError, match="prediction eps does not go with zero_terminal_snr"):
            Gaussian(schedule, prediction="eps")
        return
    t = at(*TIMES)
    z_0, eps = state_like(0.7, -1.2, 0.4, 2.0), state_like(-0.3, 0.8, 1.5, -0.6)
    kernel = Gaussian(schedule, prediction=name)
    z_t = kernel.corrupt(z_0, t, eps)
    alpha, sigma = (level[:, None, None, None, None] for level in schedule(t))
    step = 1e-6
    inner = t.clamp(max=1 - step)  # the derivative at the end is that of just before it
    ahead, behind = (kernel.corrupt(z_0, inner + h, eps) for h in (step, -step))
    outputs = {
        "eps": eps,
        "x0": z_0,
        "v": alpha * eps - sigma * z_0,
        "u": (ahead - behind) / (2 * step),
    }
    found = kernel.predict(outputs[name], z_t, t)
    close = {"rtol": 0, "atol": 1e-4 if name == "u" else 1e-12}
    torch.testing.assert_close(found.x0, z_0, **close)
    torch.testing.assert_close(found.eps, eps, **close)
    torch.testing.assert_close(found.v, outputs["v"], **close)
    torch.testing.assert_close(
        found.velocity(schedule.rates(t)), outputs["u"], rtol=1e-4, atol=1e-4
    )
    # and the loss is nothing there, in every weighting
    for weighting in (None, "x0", "v", "u"):
        weighed = Gaussian(schedule, prediction=name, weighting=made_weighting(weighting))
        exact = outputs[name] if name != "u" else found.velocity(schedule.rates(t))
        assert weighed.loss(exact, z_0, z_t, t, eps).max() < 1e-6


@pytest.mark.parametrize("schedule", [*PATHS, Cosine()], ids=lambda s: type(s).__name__)
def test_a_weighting_is_the_error_of_its_quantity(schedule):
    t = at(0.2, 0.5, 0.9)
    z_0, eps, wrong = state_like(0.7, -1.2, 0.4), state_like(-0.3, 0.8, 1.5), state_like(1, 2, 3)
    z_t = Gaussian(schedule).corrupt(z_0, t, eps)
    for prediction in ("x0", "v", "u"):
        kernel = Gaussian(schedule, prediction=prediction)
        said, true = kernel.predict(wrong, z_t, t), Prediction.from_x0(z_0, z_t, *schedule(t))
        rates = schedule.rates(t)
        errors = {
            "x0": said.x0 - true.x0,
            "eps": said.eps - true.eps,
            "v": said.v - true.v,
            "u": said.velocity(rates) - true.velocity(rates),
        }
        for weighting, error in errors.items():
            weighed = Gaussian(schedule, prediction, weighting=made_weighting(weighting))
            found = weighed.loss(wrong, z_0, z_t, t, eps)
            torch.testing.assert_close(found, error.square().flatten(1).mean(1))
        # min(SNR, gamma) on the clean state's error, whatever the output
        snr = schedule.log_snr(t).exp()
        for gamma in (0.1, 5.0):
            weighed = Gaussian(schedule, prediction, weighting=MinSNRWeighting(gamma))
            expected = snr.clamp(max=gamma) * errors["x0"].square().flatten(1).mean(1)
            torch.testing.assert_close(weighed.loss(wrong, z_0, z_t, t, eps), expected)


def test_where_the_velocity_says_nothing():
    # sigma of variance-preserving paths rises vertically at t = 0
    for schedule in (Cosine(), LinearSchedule(zero_terminal_snr=True), Cosine(shift=8.0)):
        z = state_like(0.4, -0.7)
        found = Gaussian(schedule, prediction="u").predict(state_like(3.0, 5.0), z, at(0.0, 0.0))
        torch.testing.assert_close(found.x0, z)
        assert found.eps.abs().max() == 0
        inside = Gaussian(schedule, prediction="u").predict(state_like(3.0), z[:1], at(1.0))
        assert bool(torch.isfinite(inside.x0).all())
    # the straight line has a velocity at both ends
    ends = Gaussian(Rectified(), prediction="u")
    z_0, eps = state_like(0.4, 0.4), state_like(1.3, 1.3)
    found = ends.predict(eps - z_0, ends.corrupt(z_0, at(0.0, 1.0), eps), at(0.0, 1.0))
    torch.testing.assert_close(found.x0, z_0)
    torch.testing.assert_close(found.eps, eps)


@by_path
@pytest.mark.parametrize(("s", "t"), [(0.0, 0.3), (0.02, 0.5), (0.4, 0.9), (0.5, 1.0)])
def test_posterior_is_bayes_rule(schedule, s, t):
    (a_s, s_s), (a_t, s_t) = one(schedule, s), one(schedule, t)
    gain = a_t / a_s
    cov, var = gain * s_s**2, s_t**2
    z_0, z_t = 0.7, -1.3
    mean = a_s * z_0 + cov / var * (z_t - a_t * z_0)
    variance = s_s**2 - cov**2 / var
    kernel = Gaussian(schedule)
    found, spread = kernel.posterior(state_like(z_0), state_like(z_t), at(t), at(s))
    assert found.item() == pytest.approx(mean, abs=1e-12)
    assert spread.item() ** 2 == pytest.approx(variance, abs=1e-12)
    # a step up gives the marginal of the noisier level: gain and variance
    up = kernel.renoise(state_like(1.0, 0.0), at(s, s), at(t, t), state_like(0.0, 1.0)).flatten()
    assert up[0].item() == pytest.approx(gain, abs=1e-12)
    assert up[0].item() ** 2 * s_s**2 + up[1].item() ** 2 == pytest.approx(s_t**2, abs=1e-12)


@by_path
def test_the_prior_has_the_size_of_the_last_state(schedule):
    alpha, sigma = one(schedule, 1.0)
    found = Gaussian(schedule).prior(state_like(1.0, -2.0))
    expected = math.sqrt(alpha**2 + sigma**2) * state_like(1.0, -2.0)
    torch.testing.assert_close(found, expected)
    alpha, sigma = one(schedule, 0.3)
    found = Gaussian(schedule).prior(state_like(1.0, -2.0), 0.3)
    torch.testing.assert_close(found, math.hypot(alpha, sigma) * state_like(1.0, -2.0))
    z = state_like(0.3, -1.7)
    assert torch.equal(Gaussian(LinearSchedule()).prior(z), z)
    assert torch.equal(Gaussian(LinearSchedule()).prior(z, 0.3), z)


def grid(schedule, steps, start, end):
    """Equal steps of log-SNR from a time to another, without the step to 0."""
    first, last = schedule.log_snr(at(start, end)).tolist()
    inner = schedule.time(torch.linspace(first, last, steps + 1, dtype=torch.float64)[1:-1])
    return torch.cat([at(start), inner, at(end)])


@by_path
@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DDIM, 1), (Heun, 2), (DPMSolverPP, 2), (PLMS, 2), (Midpoint, 2), (UniPC, 3)],
    ids=lambda p: str(p),
)
def test_order_of_convergence(schedule, sampler, order):
    mean, std, errors = 0.3, 0.4, []
    z = state_like(*torch.linspace(-2, 2, 9).tolist())
    for steps in (32, 64, 128, 256):
        times = grid(schedule, steps, 0.9, 0.02)
        out = sampler(steps).sample(gaussian(schedule, mean, std), Gaussian(schedule), z, times)
        exact = flow(schedule, mean, std, z, 0.9, 0.02)
        errors.append((out - exact).square().mean().sqrt().item())
    # alpha² std² + sigma² is quadratic in the time of a rectified flow: one order of midpoint more
    order += sampler is Midpoint and isinstance(schedule, Rectified)
    assert math.log2(errors[1] / errors[3]) / 2 == pytest.approx(order, abs=0.12)
    assert errors[3] < {1: 2e-2, 2: 1e-3, 3: 1e-4}[order]


def test_midpoint_is_of_second_order_on_data_of_two_values():
    z, denoise = state_like(0.4, -0.1), two_points(Rectified(), 0.3)
    kernel, ends, errors = Gaussian(Rectified(), prediction="u"), (0.9, 0.3), []
    fine = torch.linspace(*ends, 2049, dtype=torch.float64)
    exact = UniPC(1, order=3).sample(denoise, kernel, z, fine)
    for steps in (32, 64, 128):
        times = torch.linspace(*ends, steps + 1, dtype=torch.float64)
        out = Midpoint(steps).sample(denoise, kernel, z, times)
        errors.append((out - exact).abs().max().item())
    assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(2, abs=0.1)


def test_ddim_is_the_euler_step_of_the_straight_flow_and_midpoint_its_midpoint():
    z = state_like(0.9, -0.4)
    denoise, kernel = gaussian(Rectified(), 0.3, 0.4), Gaussian(Rectified(), prediction="u")
    found = DDIM(1).sample(denoise, kernel, z, at(0.8, 0.5))
    u = denoise(z, at(0.8, 0.8), Condition()).velocity(Rectified().rates(at(0.8, 0.8)))
    torch.testing.assert_close(found, z + (0.5 - 0.8) * u)
    middle = z + (0.65 - 0.8) * u
    u = denoise(middle, at(0.65, 0.65), Condition()).velocity(Rectified().rates(at(0.65, 0.65)))
    found = Midpoint(1).sample(denoise, kernel, z, at(0.8, 0.5))
    torch.testing.assert_close(found, z + (0.5 - 0.8) * u)


@by_path
@pytest.mark.parametrize("sampler", [DDIM, Heun, Midpoint])
def test_inversion_finds_the_noisy_state(schedule, sampler):
    mean, std = 0.3, 0.4
    x = state_like(*torch.linspace(-0.8, 1.2, 7).tolist())
    denoise, kernel = gaussian(schedule, mean, std), Gaussian(schedule)
    chain = sampler(100)
    times = chain.times(schedule, 0.7)
    up = chain.invert(denoise, kernel, x, times)
    exact = flow(schedule, mean, std, x, 0.0, 0.7)
    assert (up - exact).abs().max() < 0.05 * exact.abs().max()
    there = chain.invert(denoise, kernel, x, times, iterations=15)
    back = chain.sample(denoise, kernel, there, times)
    assert (back - x).abs().max() < 1e-4
    assert (chain.sample(denoise, kernel, up, times) - x).abs().max() > (back - x).abs().max()


@by_path
def test_ddim_with_full_noise_is_ancestral(schedule):
    z = state_like(-1.0, 0.4)
    denoise, kernel = gaussian(schedule, 0.2, 0.5), Gaussian(schedule)
    times, noise = grid(schedule, 9, 0.98, 0.02), white(z)
    ancestral = Ancestral(9).sample(denoise, kernel, z, times, noise=noise)
    ddim = DDIM(9, eta=1.0).sample(denoise, kernel, z, times, noise=noise)
    torch.testing.assert_close(ddim, ancestral, rtol=0, atol=1e-12)
    half = DDIM(9, eta=0.5).sample(denoise, kernel, z, times, noise=noise)
    assert (half - ddim).abs().min() > 1e-3


@by_path
@pytest.mark.parametrize("variance", [0.0, 1.0])
def test_ancestral_variance_is_exact_where_it_claims_to_be(schedule, variance):
    # variance 1 for data of unit variance, variance 0 for data without any, at any step
    std = variance
    (a_t, s_t), (a_s, s_s) = one(schedule, 0.8), one(schedule, 0.3)
    denoise, kernel = gaussian(schedule, 0.0, std), Gaussian(schedule)
    z = state_like(0.0, 1.0, 0.0)
    out = Ancestral(1, variance=variance).sample(
        denoise, kernel, z, at(0.8, 0.3), noise=lambda i: state_like(0.0, 0.0, 1.0)
    )
    offset, gain, drawn = out.flatten().tolist()
    before, after = (a**2 * std**2 + s**2 for a, s in ((a_t, s_t), (a_s, s_s)))
    assert (gain - offset) ** 2 * before + (drawn - offset) ** 2 == pytest.approx(after)


@by_path
def test_an_exact_classifier_turns_the_prior_into_a_class(schedule):
    mean, std, shift = 0.1, 0.5, 0.8

    def log_probability(z, t):  # Gaussian evidence: p(y | z_0) ~ exp(shift z_0), as seen at z_t
        alpha, sigma = (level[:, None, None, None, None] for level in schedule(t))
        x0 = mean + alpha * std**2 * (z - alpha * mean) / (alpha**2 * std**2 + sigma**2)
        return torch.stack([shift * x0.flatten(1).sum(1)], 1)

    given = ClassPosterior(log_probability, schedule, 2, "exact")
    guided = ClassifierGuidance(1.0, classifier=given)(gaussian(schedule, mean, std))
    z, t = state_like(0.3, -0.9), at(0.4, 0.8)
    found = guided(z, t, Condition())
    moved = gaussian(schedule, mean + shift * std**2, std)(z, t, Condition())
    for name in ("x0", "eps", "v"):
        torch.testing.assert_close(getattr(found, name), getattr(moved, name))


def test_bits_need_a_schedule_that_preserves_variance():
    with pytest.raises(ValueError, match=r"schedule: expected one that preserves variance.*Recti"):
        Discrete(Rectified())
