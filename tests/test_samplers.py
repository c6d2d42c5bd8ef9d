"""Samplers, by contract: every file in `samplers/` has to pass, on data whose denoiser is known.

Accuracy of each method (orders, published numbers, other libraries) is in `test_sampler_accuracy`.
"""

from dataclasses import fields

import pytest
import torch
from oracles import flow, gaussian, gradual, state_like, white

from volumediff.compatibility.chains import walks
from volumediff.component import is_handed_in
from volumediff.config import available, build, component
from volumediff.kernels.gaussian import Gaussian
from volumediff.samplers._base import InvertibleSampler
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule

KERNELS = {
    "linear": Gaussian(LinearSchedule()),
    "zero": Gaussian(LinearSchedule(zero_terminal_snr=True)),
    "shifted": Gaussian(Cosine(zero_terminal_snr=True, shift=4.0)),
}
KERNEL = KERNELS["zero"]
MEAN, STD = 0.3, 0.5


def handed(name):
    """Arguments of a sampler that nobody configures."""
    return {f.name for f in fields(component("sampler", name)) if is_handed_in(f)}


# Those that take their steps from the model and those along ends of paths are in test_students.
NAMES = [
    n
    for n in available("sampler")
    if "steps" not in handed(n)
    and walks(build("sampler", {"name": n, "steps": 1}), "gaussian")
    and not component("sampler", n).through_ends
]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=[n for n in NAMES if "grid" not in handed(n)])
def gridded(request):
    """A sampler whose times are those of any grid; others have times of their own."""
    return request.param


@pytest.fixture(params=KERNELS)
def kernel(request):
    return KERNELS[request.param]


def made(name, steps=8, **options):
    return build("sampler", {"name": name, "steps": steps, **options})


def draw(seed=0, b=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((b, 2, 3, 2, 4), generator=generator, dtype=torch.float64).to(dtype)


def run(name, z, *, steps=8, kernel=KERNEL, times=None, **keywords):
    sampler = made(name, steps)
    times = sampler.times(kernel.schedule) if times is None else times
    denoise = keywords.pop("denoise", gaussian(kernel.schedule, MEAN, STD))
    noise = keywords.pop("noise", white(z))
    return sampler.sample(denoise, kernel, z, times, noise=noise, **keywords)


def test_wide_states_survive(name, kernel):
    # Latents and z-scored intensities are not in [-1, 1]: nothing may clip them.
    z = gradual(2000, dtype=torch.float32)
    out = run(name, z, steps=80, kernel=kernel, denoise=gaussian(kernel.schedule, 0.0, 3.0))
    assert out.dtype == torch.float32
    assert out.std().item() == pytest.approx(3.0, rel=0.1)
    assert out.abs().max() > 7


def test_times_start_and_end_exactly(gridded, kernel):
    for start in (1.0, 0.25, 0.003):
        times = made(gridded, 7).times(kernel.schedule, start)
        expected = start * torch.linspace(1, 0, 8).double()
        torch.testing.assert_close(times, expected, rtol=1e-7, atol=0)
        assert times.dtype == torch.float64
        assert (float(times[0]), float(times[-1])) == (start, 0.0)


def test_times_uniform_in_log_snr(gridded, kernel):
    sampler = made(gridded, 7, grid={"name": "log_snr", "low": -6.0, "high": 6.0})
    times = sampler.times(kernel.schedule, 1.0)
    assert len(times) == 8
    assert (float(times[0]), float(times[-1])) == (1.0, 0.0)
    inner = kernel.schedule.log_snr(times[1:-1])
    torch.testing.assert_close(inner, torch.linspace(-6, 6, 6).double(), rtol=0, atol=1e-6)
    start = kernel.schedule.time(torch.tensor([0.0]).double()).item()
    inner = kernel.schedule.log_snr(sampler.times(kernel.schedule, start)[:-1])
    torch.testing.assert_close(inner, torch.linspace(0, 6, 7).double(), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"expected less than the upper limit 6\.0"):
        sampler.times(kernel.schedule, 1e-4)


def test_grid_in_log_snr_reproduces_gaussian_data(gridded, kernel):
    grid = {"name": "log_snr", "low": -10.0, "high": 8.0}
    times = made(gridded, 100, grid=grid).times(kernel.schedule)
    out = run(gridded, gradual(4000), kernel=kernel, times=times)
    assert out.std().item() == pytest.approx(STD, rel=0.06)


def test_partial_start_keeps_the_law(gridded, kernel):
    z_0 = MEAN + STD * gradual(4000)
    level = torch.tensor([0.4], dtype=torch.float64)
    order = torch.randperm(4000, generator=torch.Generator().manual_seed(3))
    z = kernel.corrupt(z_0, level, gradual(4000)[..., order])
    out = run(gridded, z, kernel=kernel, times=made(gridded, 60).times(kernel.schedule, 0.4))
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert out.std().item() == pytest.approx(STD, rel=0.05)


def test_hook_sees_every_base_step_once(name):
    seen = []

    def watch(context):
        seen.append(context)
        return context.prediction.x0, context.z_t

    z = draw()
    sampler = made(name, 5)
    times = sampler.times(KERNEL.schedule)
    watched = run(name, z, times=times, on_x0=watch)
    assert [c.step for c in seen] == list(range(5))
    for c, t, s in zip(seen, times[:-1], times[1:], strict=True):
        torch.testing.assert_close(c.t, t.expand(3), rtol=0, atol=0)
        torch.testing.assert_close(c.s, s.expand(3), rtol=0, atol=0)
    assert torch.equal(seen[0].z_t, z)
    # A hook that changes nothing changes nothing.
    assert torch.equal(watched, run(name, z, times=times))


def test_times_are_the_ones_given(name):
    asked = []

    def denoise(z_t, t, condition):
        asked.append(t)
        return gaussian(KERNEL.schedule, MEAN, STD)(z_t, t, condition)

    times = torch.tensor([0.9, 0.61, 0.6, 0.2, 0.05, 0.0], dtype=torch.float64)
    run(name, draw(), times=times, denoise=denoise)
    levels = [float(t[0]) for t in asked]
    given = set(times[:-1].tolist())
    if made(name).between:
        given |= set(((times[:-1] + times[1:]) / 2).tolist())
    assert set(levels) == given
    assert levels[0] == 0.9


@pytest.mark.parametrize("when", [range(9), [8]], ids=["always", "in the last step"])
def test_replaced_clean_state_is_the_result(name, kernel, when):
    target = draw(5)

    def replace(context):
        x0 = target if context.step in when else context.prediction.x0
        return x0, context.z_t

    out = run(name, draw(), steps=9, kernel=kernel, on_x0=replace)
    torch.testing.assert_close(out, target, rtol=0, atol=1e-12)


def test_moved_state_starts_afresh(name, kernel):
    # What came before a moved state is another path: it must leave no trace in a multistep method.
    sampler = made(name, 8)
    times = sampler.times(kernel.schedule)
    x0, moved = draw(6), draw(7)

    def move_at(step):
        return lambda c: (x0, moved) if c.step == step else (c.prediction.x0, c.z_t)

    whole = run(name, draw(), kernel=kernel, times=times, on_x0=move_at(4))
    noise = white(moved)
    rest = run(
        name,
        draw(8),
        kernel=kernel,
        times=times[4:],
        on_x0=move_at(0),
        noise=lambda step: noise(step + 4),
    )
    assert torch.equal(whole, rest)


def test_ascents_are_renoising_moves(name, kernel):
    steps = []

    def watch(context):
        steps.append(context.step)
        return context.prediction.x0, context.z_t

    down = torch.linspace(1, 0.6, 41).double()
    again = torch.linspace(0.8, 0.6, 21).double()
    times = torch.cat([down, again, again, torch.linspace(0.59, 0, 60).double()])
    out = run(name, gradual(4000), kernel=kernel, times=times, on_x0=watch)
    assert len(steps) == len(times) - 3
    assert 40 not in steps
    assert 61 not in steps
    assert out.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert out.std().item() == pytest.approx(STD, rel=0.09)


def test_ascent_is_a_draw_of_the_kernel(name):
    z = draw()
    one = torch.ones(3).double()
    times = torch.tensor([0.2, 0.7], dtype=torch.float64)
    expected = KERNEL.renoise(z, 0.2 * one, 0.7 * one, white(z)(0))
    assert torch.equal(run(name, z, times=times), expected)
    with pytest.raises(ValueError, match="step 0 draws noise: pass noise="):
        run(name, z, times=times, noise=None)


def test_ascents_start_afresh(name, kernel):
    # As above: the state after a re-noising move is on another path.
    seen = {}

    def watch(context):
        seen[context.step] = context.z_t
        return context.prediction.x0, context.z_t

    times = torch.tensor([1.0, 0.8, 0.6, 0.4, 0.7, 0.5, 0.3, 0.1, 0.0], dtype=torch.float64)
    noise = white(draw())
    whole = run(name, draw(), kernel=kernel, times=times, on_x0=watch)
    rest = run(name, seen[4], kernel=kernel, times=times[4:], noise=lambda i: noise(i + 4))
    assert torch.equal(whole, rest)


def test_times_may_differ_by_sample(gridded, kernel):
    sampler, z = made(gridded, 6), draw(b=2)
    grids = [sampler.times(kernel.schedule, start) for start in (1.0, 0.35)]
    both = run(gridded, z, kernel=kernel, times=torch.stack(grids, 1))
    noise = white(z)
    for i in range(2):
        one = run(
            gridded,
            z[i : i + 1],
            kernel=kernel,
            times=grids[i],
            noise=lambda step, i=i: noise(step)[i : i + 1],
        )
        torch.testing.assert_close(both[i : i + 1], one, rtol=1e-12, atol=1e-12)


def test_nothing_is_remembered(name):
    # Same seed, second volume, split batch, and another user in between: same samples.
    z = draw()
    noise = white(z)
    sampler, times = made(name, 6), made(name, 6).times(KERNEL.schedule)
    denoise = gaussian(KERNEL.schedule, MEAN, STD)
    first = sampler.sample(denoise, KERNEL, z, times, noise=noise)
    sampler.sample(denoise, KERNEL, draw(9, b=1), times[3:], noise=white(draw(9, b=1)))
    assert torch.equal(sampler.sample(denoise, KERNEL, z, times, noise=noise), first)
    parts = [
        sampler.sample(denoise, KERNEL, z[c], times, noise=lambda i, c=c: noise(i)[c])
        for c in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(torch.cat(parts), first, rtol=0, atol=1e-14)


def test_grid_may_end_above_zero(name):
    # The law at t = 0.1 is that of the flow there.
    times = torch.linspace(1, 0.1, 100).double()
    z = gradual(2000)
    out = run(name, z, times=times)
    exact = flow(KERNEL.schedule, MEAN, STD, z, 1.0, 0.1)
    assert out.mean().item() == pytest.approx(exact.mean().item(), abs=0.02)
    assert out.std().item() == pytest.approx(exact.std().item(), rel=0.05)


def test_no_graph_is_kept(name):
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    out = run(name, draw(), denoise=gaussian(KERNEL.schedule, MEAN * scale, STD))
    assert not out.requires_grad


def test_steps_are_checked(name):
    with pytest.raises(ValueError, match="expected steps >= 1, got 0"):
        type(made(name))(0)


@pytest.mark.parametrize(
    ("times", "message"),
    [
        ([1.0], "expected two or more times"),
        ([1.2, 0.0], "all in .0, 1."),
        ([1.0, float("nan")], "all in .0, 1."),
        ([1.0, 0.5, 0.5, 0.0], "differ from the one before"),
        ([[1.0, 0.5], [0.5, 1.0], [0.0, 0.0]], "all samples to go up, down"),
        ([[1.0, 1.0], [0.5, 0.5], [0.0, 0.1]], "and to 0 together"),
    ],
)
def test_times_are_checked(name, times, message):
    with pytest.raises(ValueError, match=message):
        run(name, draw(b=2), times=torch.tensor(times, dtype=torch.float64))


@pytest.mark.parametrize("start", [0.0, 1.5, float("nan")])
def test_start_is_checked(name, start):
    with pytest.raises(ValueError, match=r"expected a start in \(0, 1\]"):
        made(name).times(KERNEL.schedule, start)


INVERTIBLE = [n for n in NAMES if isinstance(made(n), InvertibleSampler)]


def test_invertible_samplers_are_the_three():
    assert {"ddim", "heun", "midpoint"} <= set(INVERTIBLE)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_inversion_follows_the_flow(name, kernel):
    sampler = made(name, 100)
    # The ends of a zero terminal SNR have no inverse: z_1 says nothing about z_0.
    times = sampler.times(kernel.schedule, 0.7)
    x = state_like(-0.4, 0.1, 0.9)
    z = sampler.invert(gaussian(kernel.schedule, MEAN, STD), kernel, x, times)
    exact = flow(kernel.schedule, MEAN, STD, x, 0.0, 0.7)
    torch.testing.assert_close(z, exact, rtol=0, atol=4e-2)


@pytest.mark.parametrize("name", INVERTIBLE)
def test_iterations_make_the_round_trip_exact(name, kernel):
    sampler, x = made(name, 20), draw().mul(STD).add(MEAN)
    times = sampler.times(kernel.schedule, 0.7)
    denoise = gaussian(kernel.schedule, MEAN, STD)
    errors = []
    for iterations in (0, 3, 16):
        z = sampler.invert(denoise, kernel, x, times, iterations=iterations)
        errors.append((sampler.sample(denoise, kernel, z, times) - x).abs().max().item())
    assert errors[1] < errors[0] / 5
    assert errors[2] < 1e-6


@pytest.mark.parametrize("name", INVERTIBLE)
def test_inversion_refuses_ascents(name):
    times = torch.tensor([0.5, 0.6, 0.0], dtype=torch.float64)
    with pytest.raises(ValueError, match="inversion needs descending times, got ascents"):
        made(name).invert(gaussian(KERNEL.schedule, 0.0, 1.0), KERNEL, draw(), times)
