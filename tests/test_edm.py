"""The EDM kernel: one denoiser under every schedule, and v-prediction under another name."""

import math
from itertools import pairwise

import pytest
import torch
from oracles import flow, gaussian, state_like

from volumediff.batch import Batch
from volumediff.classification import StateClassifier
from volumediff.classifiers.encoder import Encoder
from volumediff.condition import Condition
from volumediff.kernels.edm import CLOCK_ENDS, EDM
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.samplers.heun import Heun
from volumediff.samplers.midpoint import Midpoint
from volumediff.samplers.plms import PLMS
from volumediff.samplers.unipc import UniPC
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.exploding import Exploding
from volumediff.schedules.linear import LinearSchedule
from volumediff.schedules.rectified import Rectified
from volumediff.spaces.voxel import Voxel
from volumediff.time_grids import KarrasTimeGrid
from volumediff.times._base import TimeDensity

SCHEDULES = [Exploding(sigma_max=500.0), Rectified(), Cosine(), Rectified(shift=9.0)]
LEVELS = torch.tensor([6.0, 1.0, -2.0, -5.0], dtype=torch.float64)  # log-SNR


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(seed, b=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((b, 2, 4, 2, 4), generator=generator, dtype=torch.float64)


def network(kernel, z_t, t):
    """Something that depends on all that it is shown, and is no function of its scale."""
    seen, clock = kernel.shown(z_t, t)
    return torch.tanh(3 * seen + per_sample(clock, seen)) - 0.4 * seen.roll(1, 4)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_one_network_is_one_denoiser_under_every_schedule(sigma_data):
    z_0, noise = sigma_data * draw(0), draw(1)
    found = []
    for schedule in SCHEDULES:
        kernel, t = EDM(schedule, sigma_data=sigma_data), schedule.time(LEVELS)
        z_t = kernel.corrupt(z_0, t, noise)
        output = network(kernel, z_t, t)
        p, loss = kernel.predict(output, z_t, t), kernel.loss(output, z_0, z_t, t, noise)
        found.append((*kernel.shown(z_t, t), output, p.x0, p.eps, loss))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
def test_the_formulas_are_those_of_the_paper(sigma_data):
    # Table 1 and eq. 8 of Karras et al., for z = x + sigma n
    schedule = Exploding()
    kernel, t = EDM(schedule, sigma_data=sigma_data), at(0.1, 0.4, 0.8, 1.0)
    x, noise = sigma_data * draw(0), draw(1)
    sigma = per_sample(schedule(t)[1], x)
    z = x + sigma * noise
    total = sigma**2 + sigma_data**2
    skip, out = sigma_data**2 / total, sigma * sigma_data / total.sqrt()
    seen, clock = kernel.shown(z, t)
    torch.testing.assert_close(seen, z / total.sqrt(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(per_sample(clock, x), sigma.log() / 4, rtol=1e-12, atol=1e-13)
    output = draw(2)
    d = skip * z + out * output
    found = kernel.predict(output, z, t)
    torch.testing.assert_close(found.x0, d, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.eps, (z - d) / sigma, rtol=1e-9, atol=1e-9)
    weight = total / (sigma * sigma_data) ** 2
    expected = (weight * (d - x) ** 2).mean((1, 2, 3, 4))
    torch.testing.assert_close(kernel.loss(output, x, z, t, noise), expected, rtol=1e-9, atol=0)
    # what the network sees and what it is to say have unit variance
    wide = sigma_data * torch.randn((1, 1, 30, 30, 30), generator=torch.Generator().manual_seed(3))
    field = torch.randn(wide.shape, generator=torch.Generator().manual_seed(4))
    for level in (0.05, 0.5, 1.0):
        for part in (
            kernel.shown(kernel.corrupt(wide, at(level), field), at(level))[0],
            kernel.target(wide, at(level), field),
        ):
            assert part.std().item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("schedule", [Cosine(), LinearSchedule(zero_terminal_snr=True)], ids=repr)
def test_it_is_v_prediction_where_variance_is_preserved(schedule):
    t = at(0.05, 0.4, 0.8, 0.97)
    v, edm = Gaussian(schedule, "v"), EDM(schedule)
    z_0, noise, output = draw(0), draw(1), draw(2)
    z_t = v.corrupt(z_0, t, noise)
    close = {"rtol": 0, "atol": 1e-12}
    torch.testing.assert_close(edm.shown(z_t, t)[0], z_t, **close)
    torch.testing.assert_close(edm.target(z_0, t, noise), -v.target(z_0, t, noise), **close)
    torch.testing.assert_close(
        edm.loss(-output, z_0, z_t, t, noise), v.loss(output, z_0, z_t, t, noise), **close
    )
    mine, theirs = edm.predict(-output, z_t, t), v.predict(output, z_t, t)
    for name in ("x0", "eps", "v"):
        torch.testing.assert_close(getattr(mine, name), getattr(theirs, name), **close)


def test_the_probability_flow_is_one_trajectory():
    # DDIM is an Euler step in S = sigma / alpha, so that its chains agree at every level.
    levels = torch.linspace(-6, 6, 13, dtype=torch.float64)
    start, found = 1.7 * draw(5), []
    for schedule in SCHEDULES:
        kernel, times = EDM(schedule), schedule.time(levels)

        def denoise(z, t, condition, kernel=kernel):
            return kernel.predict(network(kernel, z, t), z, t)

        alpha, sigma = (x[0] for x in schedule(times[:1]))
        path = []

        def watch(context, path=path, schedule=schedule):
            path.append(context.z_t / schedule(context.t[:1])[0])
            return context.prediction.x0, context.z_t

        z = (alpha.square() + sigma.square()).sqrt() * start
        DDIM(12).sample(denoise, kernel, z, times, on_x0=watch)
        found.append(torch.stack(path))
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=1e-9, atol=1e-10)
    assert (found[0][0] - found[0][-1]).abs().mean() > 0.5


def test_ends_are_exact():
    output, z = draw(2, b=2), draw(3, b=2)
    for schedule in SCHEDULES:
        kernel, ends = EDM(schedule), at(0.0, 1.0)
        found = kernel.predict(output, z, ends)
        torch.testing.assert_close(found.x0[0], z[0], rtol=0, atol=1e-15)
        torch.testing.assert_close(found.eps[0], -output[0], rtol=0, atol=1e-15)
        seen, clock = kernel.shown(z, ends)
        assert torch.equal(seen[0], z[0])
        assert float(clock[0]) == pytest.approx(-CLOCK_ENDS / 8)
        assert bool(clock.isfinite().all() and seen.isfinite().all())
        if schedule.zero_terminal_snr:
            torch.testing.assert_close(found.x0[1], output[1])
            torch.testing.assert_close(found.eps[1], z[1])


class Levels(TimeDensity):
    """Times of fixed log-SNR, so that models under other schedules train on the same."""

    support = (0.0, 1.0)

    def at(self, u, schedule):
        return schedule.time(10 * u - 5)


@pytest.mark.parametrize("schedule", SCHEDULES[1:], ids=repr)
def test_models_and_classifiers_train_alike_under_every_schedule(schedule):
    made = UNet(1, 1, widths=(4, 8), blocks=1, groups=2)
    labels = Encoder(1, 2, widths=(4, 8))
    for module in (made, labels):
        for i, p in enumerate(module.parameters()):
            p.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(i))
    x = draw(4, b=3)[:, :1].repeat(1, 1, 1, 2, 1)
    batch = Batch(x.float(), (3, 4, 5), Condition(label=torch.tensor([0, 1, 1])))
    losses, answers = [], []
    for each in (SCHEDULES[0], schedule):
        model = Model(Voxel(), EDM(each), made, time_density=Levels())
        losses.append(model.loss(Batch(x.float(), (3, 4, 5))))
        states = StateClassifier(Voxel(), EDM(each), labels, time_density=Levels())
        answers.append(states.loss(batch))
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)


def test_sampling_reproduces_data_from_the_size_of_the_prior():
    schedule = Exploding(sigma_max=300.0)
    kernel, z = EDM(schedule), state_like(*torch.linspace(-2, 2, 9).tolist())
    start = kernel.prior(z)
    torch.testing.assert_close(start, (1 + 300.0**2) ** 0.5 * z)
    out = DDIM(400).sample(gaussian(schedule, 0.3, 0.5), kernel, start, DDIM(400).times(schedule))
    exact = flow(schedule, 0.3, 0.5, start, 1.0, 0.0)
    torch.testing.assert_close(out, exact, rtol=0, atol=0.02)


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        ValueError, match=r"keep about their size.*got Exploding.*kernel=.name: edm"
    ):
        Gaussian(Exploding())
    with pytest.raises(ValueError, match="expected sigma_data above 0, got 0"):
        EDM(Cosine(), sigma_data=0.0)


def karras_heun(denoise, z, sigmas):
    """Algorithm 1 of Karras et al., as printed, for alpha = 1 and sigma = t."""
    for now, then in pairwise(sigmas):
        d = (z - denoise(z, now)) / now
        ahead = z + (then - now) * d
        if then:
            ahead = z + (then - now) * (d + (ahead - denoise(ahead, then)) / then) / 2
        z = ahead
    return z


def test_heun_is_the_sampler_of_the_paper_where_no_step_halves_the_noise():
    schedule, steps = Exploding(), 40
    kernel, grid = EDM(schedule), KarrasTimeGrid(sigma_min=0.02)
    times = grid.times(schedule, steps)
    exact, z = gaussian(schedule, 0.3, 0.5), kernel.prior(draw(6))
    sigmas = schedule(times)[1]
    ratios = sigmas[1:-1] / sigmas[:-2]
    assert float(ratios.min()) > 0.5

    def denoise(z, sigma):
        t = times[(sigmas == sigma).nonzero()[0, 0]]
        return exact(z, t.repeat(len(z)), Condition()).x0

    expected = karras_heun(denoise, z, sigmas)
    out = Heun(steps, grid=grid).sample(exact, kernel, z, times)
    torch.testing.assert_close(out, expected, rtol=1e-9, atol=1e-11)


def test_euler_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=1.0)
    theirs.set_timesteps(12)
    schedule = Exploding()
    kernel = EDM(schedule)
    expected = start = kernel.prior(draw(7))
    times = torch.cat(
        [schedule.time(-2 * theirs.sigmas[:-1].double().log()), torch.zeros(1).double()]
    )

    def f(z, t):
        return network(kernel, z, t.repeat(len(z)))

    for k, t in zip(theirs.timesteps, times[:-1], strict=True):
        seen = theirs.scale_model_input(expected, k)
        torch.testing.assert_close(seen, kernel.shown(expected, t.repeat(4))[0])
        expected = theirs.step(f(expected, t), k, expected).prev_sample
        theirs.is_scale_input_called = True

    def denoise(z, t, condition):
        return kernel.predict(network(kernel, z, t), z, t)

    out = DDIM(12).sample(denoise, kernel, start, times)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "order"),
    [(DDIM, 1), (Heun, 2), (Midpoint, 2), (DPMSolverPP, 2), (PLMS, 2), (UniPC, 3)],
    ids=lambda p: getattr(p, "__name__", p),
)
def test_order_of_convergence(sampler, order):
    schedule, errors = Exploding(), []
    z = 10 * state_like(*torch.linspace(-2, 2, 9).tolist())
    for steps in (64, 128, 256):
        times = torch.linspace(0.7, 0.35, steps + 1, dtype=torch.float64)
        out = sampler(steps).sample(gaussian(schedule, 0.3, 0.4), EDM(schedule), z, times)
        exact = flow(schedule, 0.3, 0.4, z, 0.7, 0.35)
        errors.append((out - exact).square().mean().sqrt().item())
    assert math.log2(errors[0] / errors[2]) / 2 == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize("sampler", [DDIM, Heun, Midpoint], ids=lambda s: s.__name__)
def test_inversion_on_the_exploding_schedule(sampler):
    schedule, x = Exploding(), 0.3 + 0.4 * draw(8)
    denoise, chain = gaussian(schedule, 0.3, 0.4), sampler(40)
    times = chain.times(schedule, 0.6)
    there = chain.invert(denoise, EDM(schedule), x, times, iterations=30)
    back = chain.sample(denoise, EDM(schedule), there, times)
    torch.testing.assert_close(back, x, rtol=0, atol=1e-6)
    exact = flow(schedule, 0.3, 0.4, x, 0.0, 0.6)
    allowed = {DDIM: 0.2, Heun: 0.02, Midpoint: 0.02}[sampler]
    assert (there - exact).abs().max() < allowed * exact.abs().max()
