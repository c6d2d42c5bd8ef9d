"""Discrete kernel against enumeration of all paths of one variable, and its loss."""

from itertools import pairwise, product

import pytest
import torch
from oracles import white

from volumediff.kernels.discrete import Discrete
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.samplers.heun import Heun
from volumediff.samplers.plms import PLMS
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule

LINEAR = LinearSchedule()
ZERO = Cosine(zero_terminal_snr=True)
CLASSES = [2, 3, 5]


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def states(*classes, k):
    """One variable per sample, as a state: (b, 1 or k, 1, 1, 1)."""
    one = 2 * torch.nn.functional.one_hot(torch.tensor(classes), k).double() - 1
    return (one[:, :1] if k == 2 else one)[..., None, None, None]


def table(p):
    """Probabilities of one variable as the kernel takes them."""
    return torch.as_tensor(p, dtype=torch.float64)[:, None, :, None, None, None]


def transition(a, k):
    """Row of the old class, column of the new one: kept, or drawn anew uniformly."""
    return a * torch.eye(k, dtype=torch.float64) + (1 - a) / k


def kept(schedule, *times):
    """alpha_bar, written out."""
    return (schedule(at(*times))[0] ** 2).tolist()


def paths(schedule, times, k, start):
    """Probability of every path z_0, z_s, ..., z_t, by multiplication of its steps."""
    levels = kept(schedule, *times)
    steps = [transition(b / a, k) for a, b in pairwise(levels)]
    found = {}
    for path in product(range(k), repeat=len(times)):
        p = float(start[path[0]])
        for step, (i, j) in zip(steps, pairwise(path), strict=True):
            p *= float(step[i, j])
        found[path] = p
    return found


def moments(move, z, k, n=40_000):
    """Shares of the classes that a move makes of many copies of one state."""
    many = z.expand(-1, -1, n, -1, -1)
    made = move(many, torch.randn(many.shape, generator=torch.Generator().manual_seed(0)).double())
    assert set(made.unique().tolist()) <= {-1.0, 1.0}
    if k == 2:
        return torch.tensor([(made > 0).double().mean(), (made < 0).double().mean()])
    assert bool(((made > 0).sum(1) == 1).all())
    return (made > 0).double().mean((0, 2, 3, 4))


@pytest.mark.parametrize("k", CLASSES)
@pytest.mark.parametrize("times", [(0.0, 0.3, 0.5, 0.9), (0.0, 0.01, 0.02, 1.0)])
@pytest.mark.parametrize("schedule", [LINEAR, ZERO], ids=["linear", "zero"])
def test_posterior_is_the_sum_over_all_paths(k, times, schedule):
    kernel = Discrete(schedule, classes=k)
    prior = torch.rand(k, generator=torch.Generator().manual_seed(k)).double() + 0.05
    prior /= prior.sum()
    every = paths(schedule, times, k, prior)
    for place, last in product((0, 1, 2), range(k)):
        ending = {path: p for path, p in every.items() if path[-1] == last}
        total = sum(ending.values())
        share = [sum(p for x, p in ending.items() if x[0] == i) / total for i in range(k)]
        wanted = [sum(p for x, p in ending.items() if x[place] == j) / total for j in range(k)]
        s = at(times[place])
        found = kernel.posterior(table([share]), states(last, k=k), at(times[-1]), s)
        torch.testing.assert_close(found.flatten(), at(*wanted), rtol=0, atol=1e-12)


def test_plugging_the_mean_into_the_posterior_would_be_biased():
    # The published sampler: q(z_s | z_t, z_0) with the soft prediction in place of z_0.
    kernel, rare = Discrete(LINEAR), 0.01
    times = torch.linspace(1, 0, 101).double().tolist()
    summed = plugged = at(0.5)  # P(z = 1), tabulated over both values of the state
    for t, s in pairwise(times):
        (level,) = kept(LINEAR, t)
        likely = transition(level, 2) * at(rare, 1 - rare)[:, None]
        p = (likely / likely.sum(0)).T  # of z_0, for each value of z_t
        both = states(0, 1, k=2)
        exact = kernel.posterior(table(p), both, at(t, t), at(s, s)).reshape(2, 2)[:, 0]
        (before,) = kept(LINEAR, s)
        forward = transition(level / before, 2).T
        soft = before * p + (1 - before) / 2
        wrong = forward * soft / (forward * soft).sum(1, keepdim=True)
        summed = summed * exact[0] + (1 - summed) * exact[1]
        plugged = plugged * wrong[0, 0] + (1 - plugged) * wrong[1, 0]
    # the linear schedule starts a chain 4e-5 off
    assert summed.item() == pytest.approx(rare, abs=1e-4)
    assert plugged.item() > 0.05


@pytest.mark.parametrize("k", CLASSES)
def test_noise_keeps_or_draws_uniformly(k):
    kernel, t, s = Discrete(LINEAR, classes=k), at(0.4), at(0.1)
    for start in range(k):
        (level, before) = kept(LINEAR, 0.4, 0.1)
        z = states(start, k=k)
        marginal = moments(lambda x, n: kernel.corrupt(x, t, n), z, k)
        torch.testing.assert_close(marginal, transition(level, k)[start], rtol=0, atol=0.01)
        again = moments(lambda x, n: kernel.renoise(x, s, t, n), z, k)
        torch.testing.assert_close(again, transition(level / before, k)[start], rtol=0, atol=0.01)


@pytest.mark.parametrize("k", CLASSES)
def test_nothing_is_left_at_the_end(k):
    # In the published code the value 0 never changes, and 1 decays to 0.
    kernel, uniform = Discrete(ZERO, classes=k), torch.full((k,), 1 / k).double()
    for start in range(k):
        z = states(start, k=k)
        end = moments(lambda x, n: kernel.corrupt(x, at(1.0), n), z, k)
        torch.testing.assert_close(end, uniform, rtol=0, atol=0.01)
    prior = moments(lambda x, n: kernel.prior(n), states(0, k=k), k)
    torch.testing.assert_close(prior, uniform, rtol=0, atol=0.01)


@pytest.mark.parametrize("k", CLASSES)
def test_steps_draw_from_the_posterior(k):
    kernel, t, s = Discrete(LINEAR, classes=k), at(0.5), at(0.3)
    logits = torch.randn((1, 1 if k == 2 else k, 1, 1, 1), generator=white_generator()).double()
    z_t = states(0, k=k)
    prediction = kernel.predict(logits, z_t, t)
    p = torch.sigmoid(logits) if k == 2 else torch.softmax(logits, 1)
    p = torch.cat([p, 1 - p], 1) if k == 2 else p
    torch.testing.assert_close(kernel.probabilities(prediction.x0).flatten(), p.flatten())
    assert bool(prediction.eps.isnan().all())
    assert bool(prediction.v.isnan().all())
    wanted = kernel.posterior(p[:, None], z_t, t, s).flatten()

    def move(x, noise):
        wide = kernel.predict(logits.expand_as(x), x, t)
        return kernel.step(wide, x, t, s, noise)

    torch.testing.assert_close(moments(move, z_t, k), wanted, rtol=0, atol=0.01)
    # at s = 0 the likeliest class, whatever the noise
    final = kernel.step(prediction, z_t, t, at(0.0), white(z_t)(0))
    torch.testing.assert_close(final, states(int(p.flatten().argmax()), k=k), rtol=0, atol=0)


def white_generator():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize("steps", [1, 2, 10])
def test_a_chain_with_the_true_posterior_reproduces_independent_bits(steps):
    kernel, rare = Discrete(ZERO), 0.1
    sampler = Ancestral(steps)
    odds = torch.log(at(rare / (1 - rare)))

    def denoise(z_t, t, condition):
        (level,) = kept(ZERO, float(t[0]))
        evidence = torch.log(at((1 + level) / (1 - level)))
        return kernel.predict(odds + z_t * evidence, z_t, t)

    z = torch.zeros((1, 1, 40_000, 1, 1), dtype=torch.float64)
    noise = white(z)
    # The last step takes the likeliest class: its prediction is looked at instead.
    shares = []

    def look(ctx):
        shares.append(float((1 + ctx.prediction.x0).mean() / 2))
        return ctx.prediction.x0, ctx.z_t

    times = sampler.times(ZERO)
    sampler.sample(denoise, kernel, kernel.prior(noise(-1)), times, noise=noise, on_x0=look)
    assert len(shares) == steps
    assert max(abs(share - rare) for share in shares) < 0.005


@pytest.mark.parametrize("k", CLASSES)
def test_loss_is_least_at_the_true_posterior_and_zero_for_certainty(k):
    kernel = Discrete(LINEAR, classes=k, divergence=7.0, levels=50)
    t, p = at(0.5), 0.8
    (level,) = kept(LINEAR, 0.5)
    prior = at(p, *[(1 - p) / (k - 1)] * (k - 1))
    joint = transition(level, k) * prior[:, None]  # of z_0 and z_t

    def expected(logits, last):
        share = joint[:, last] / joint[:, last].sum()
        z_t = states(last, k=k)
        each = [kernel.loss(logits, states(i, k=k), z_t, t, z_t) for i in range(k)]
        return sum(float(share[i]) * each[i] for i in range(k)).sum()

    for last in range(k):
        share = joint[:, last] / joint[:, last].sum()
        best = share.log() if k > 2 else (share[0] / share[1]).log()[None]
        logits = best.reshape(1, -1, 1, 1, 1).clone().requires_grad_()
        (slope,) = torch.autograd.grad(expected(logits, last), logits)
        assert float(slope.abs().max()) < 1e-12
        off = logits.detach().clone()
        off[0, 0] += 0.3
        assert expected(off, last) > expected(logits, last) + 1e-4
    sure = 60.0 * states(1, k=k)
    assert float(kernel.loss(sure, states(1, k=k), states(0, k=k), t, sure)) < 1e-12
    assert float(kernel.loss(-sure, states(1, k=k), states(0, k=k), t, sure)) > 10


@pytest.mark.parametrize("k", CLASSES)
@pytest.mark.parametrize("when", [0.0004, 0.5, 1.0])  # the first is within the last step of 1000
def test_loss_and_its_gradient(k, when):
    kernel = Discrete(ZERO, classes=k, divergence=3.0)
    z_0 = torch.cat([states(c, k=k) for c in (0, 1, 1)], 2)
    z_t = torch.cat([states(c, k=k) for c in (0, 0, 1)], 2)
    logits = torch.randn(z_0.shape, generator=white_generator()).double().requires_grad_()
    args = (z_0, z_t, at(when), z_0)
    assert torch.autograd.gradcheck(lambda x: kernel.loss(x, *args), logits)
    # the divergence, written out
    p = torch.cat([logits, -logits], 1).sigmoid() if k == 2 else logits.softmax(1)
    s = max(when - 1e-3, 0.0)
    total = 0.0
    for i, (start, last) in enumerate([(0, 0), (1, 0), (1, 1)]):
        level_s, level_t = kept(ZERO, s, when)
        step = transition(level_t / level_s, k)[:, last]
        over = transition(level_s, k)
        reach = transition(level_t, k)[:, last]
        q = step * over[start] / reach[start]
        mine = (p[0, :, i, 0, 0] / reach * over.T).sum(1) * step
        inside = q > 0
        kl = (q[inside] * (q[inside] / mine[inside]).log()).sum()
        total += (3 * kl - p[0, start, i, 0, 0].log()) / 3
    torch.testing.assert_close(kernel.loss(logits, *args)[0], total, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("k", CLASSES)
def test_certain_bits_are_never_drawn_wrong(k):
    # Φ(6) is 1 in float32: numbers of the distribution function must not meet p = 1.
    kernel = Discrete(LINEAR, classes=k)
    z = states(1, k=k).float()
    for extreme in (-9.0, 9.0):
        noise = torch.full_like(z, extreme)
        torch.testing.assert_close(kernel.corrupt(z, at(0.0), noise), z, rtol=0, atol=0)


def test_other_samplers_refuse():
    kernel, z = Discrete(LINEAR), states(0, k=2)

    def denoise(z_t, t, condition):
        raise AssertionError("asked before the kernel was looked at")

    for sampler in (DDIM(2), Heun(2), DPMSolverPP(2), PLMS(2), Ancestral(2, variance=0.5)):
        times = sampler.times(LINEAR)
        with pytest.raises(ValueError, match=r"expected the kernel gaussian for .*use ancestral"):
            sampler.sample(denoise, kernel, z, times, noise=white(z))


def test_wrong_arguments():
    with pytest.raises(
        ValueError, match=r"classes >= 2 .*, divergence >= 0 and levels >= 1, got 1"
    ):
        Discrete(LINEAR, classes=1)
    with pytest.raises(ValueError, match="a multiple of 3, got 4 channels"):
        Discrete(LINEAR, classes=3).prior(torch.zeros(1, 4, 2, 2, 2))
