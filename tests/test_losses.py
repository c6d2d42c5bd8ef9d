"""Loss terms against loops, libraries and closed forms; the learned variance of a step."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from volumediff.condition import Condition
from volumediff.kernels._base import Prediction
from volumediff.kernels.discrete import Discrete
from volumediff.kernels.gaussian import Gaussian
from volumediff.losses._base import LossContext
from volumediff.losses.boundary import Boundary
from volumediff.losses.cross_entropy import MARGIN, CrossEntropy, binary_cross_entropy
from volumediff.losses.dice import Dice
from volumediff.losses.latent_kl import GaussianEncoder, LatentKL
from volumediff.losses.vlb import VariationalBound
from volumediff.networks.unet import UNet
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samplers.ancestral import Ancestral
from volumediff.samples.distances import surface_distances_mm
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet

SCHEDULE = Cosine()
SHAPE = (4, 5, 6)


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def masks(labels=2, b=2, shape=SHAPE):
    """Codes of exclusive masks, -1 and 1."""
    c = torch.randint(0, labels + 1, (b, 1, *shape), generator=torch.Generator().manual_seed(9))
    return 2 * torch.cat([(c == i).float() for i in range(1, labels + 1)], 1) - 1


def context(x, output=None, *, kernel=None, t=None, coding="signed", space=None, **more):
    recipe = LabelDiffusion(labels=tuple(range(1, x.shape[1] + 1 - (coding == "one_hot"))))
    if coding == "one_hot":
        from volumediff.codings.one_hot import OneHot

        recipe = replace(recipe, coding=OneHot())
    kernel = kernel or Gaussian(SCHEDULE, prediction="x0")
    space = space or Voxel()
    z_0 = space.encode(x)
    noise = draw(*z_0.shape, seed=1)
    t = at(*[0.2 + 0.3 * i for i in range(len(x))]) if t is None else t
    z_t = kernel.corrupt(z_0, t, noise)
    output = z_0 if output is None else output
    return LossContext(
        space=space,
        frame=space,
        kernel=kernel,
        network=UNet(1, 1, widths=(4,), blocks=1, groups=2),
        recipe=recipe,
        x=x,
        images=(draw(len(x), 1, *x.shape[2:], seed=2),),
        distance_mm=more.pop("distance_mm", None),
        condition=Condition(),
        output=output,
        z_0=z_0,
        z_t=z_t,
        t=t,
        noise=noise,
        prediction=kernel.predict(output, z_t, t),
        **more,
    )


# Dice and cross entropy


def test_dice_by_loops():
    x, guess = masks(), draw(2, 2, *SHAPE, seed=5).clamp(-1, 1)
    found = Dice(smooth=3.0)(context(x, guess))
    for sample in range(2):
        each = []
        for label in range(2):
            p, m = ((a[sample, label].numpy().astype(float) + 1) / 2 for a in (guess, x))
            each.append((2 * (p * m).sum() + 3) / ((p * p).sum() + (m * m).sum() + 3))
        assert float(found[sample]) == pytest.approx(1 - sum(each) / 2, abs=1e-6)
    assert float(Dice()(context(x)).abs().max()) < 1e-6
    nothing = context(torch.full_like(x, -1.0), guess)
    assert Dice(smooth=1e-3)(nothing).min() > 0.9, "what is found where nothing is costs"


def test_entropy_is_that_of_the_library_between_its_margins():
    p = torch.rand((2, 2, *SHAPE), generator=torch.Generator().manual_seed(1)) * 0.9 + 0.05
    x = masks()
    m = (x + 1) / 2
    torch.testing.assert_close(
        CrossEntropy()(context(x, 2 * p - 1)),
        F.binary_cross_entropy(p, m, reduction="none").flatten(1).mean(1),
    )
    weighted = CrossEntropy(classes=(0.5, 2.0, 3.0))(context(x, 2 * p - 1))
    w = torch.where(m > 0, torch.tensor([2.0, 3.0]).view(1, 2, 1, 1, 1), 0.5)
    expected = (w * F.binary_cross_entropy(p, m, reduction="none")).flatten(1).mean(1)
    torch.testing.assert_close(weighted, expected)


def test_entropy_goes_on_as_its_tangent():
    p = at(-0.5, 0.0, MARGIN - 1e-9, MARGIN + 1e-9, 1.0, 1.3).requires_grad_()
    one = torch.ones(6, dtype=torch.float64)
    loss = binary_cross_entropy(p.view(6, 1, 1, 1, 1), one.view(6, 1, 1, 1, 1))
    (slope,) = torch.autograd.grad(loss.sum(), p)
    torch.testing.assert_close(slope[:3], at(*[-1 / MARGIN] * 3))
    assert float(slope[5]) == 0, "no reward for leaving [0, 1]"
    loss = loss.detach().flatten()
    assert float(loss[2] - loss[3]) == pytest.approx(0, abs=1e-6)
    assert float(loss[0] - loss[1]) == pytest.approx(0.5 / MARGIN)


@pytest.mark.parametrize("classes", [2, 3])
def test_entropy_of_classes_is_the_kernels_own(classes):
    coding = "signed" if classes == 2 else "one_hot"
    kernel = Discrete(SCHEDULE, classes=classes, divergence=0.0)
    x = masks()
    if classes == 3:
        x = torch.cat([-x.sum(1, keepdim=True) - 1, x], dim=1)
        assert set(x[:, 0].unique().tolist()) == {-1.0, 1.0}
    logits = draw(*x.shape, seed=3)
    c = context(x, logits, kernel=kernel, coding=coding)
    torch.testing.assert_close(
        CrossEntropy()(c), kernel.loss(logits, x, c.z_t, c.t, c.noise), rtol=1e-6, atol=1e-6
    )
    weights = torch.tensor([0.2, 1.5, 4.0])
    found = CrossEntropy(classes=tuple(weights.tolist()))(c)
    if classes == 3:
        truth = x.argmax(1)
        each = F.cross_entropy(logits, truth, reduction="none") * weights[truth]
        expected = each.flatten(1).mean(1)
    else:
        m = (x > 0).float()
        each = F.binary_cross_entropy_with_logits(logits, m, reduction="none")
        w = torch.where(m > 0, weights[1:].view(1, 2, 1, 1, 1), weights[0])
        expected = (each * w).flatten(1).mean(1)
    torch.testing.assert_close(found, expected)


# the learned variance


LEARNED = Gaussian(SCHEDULE, prediction="v", variance="learned")


def test_the_variance_lies_between_both():
    plain, t, s = Gaussian(SCHEDULE), at(0.6), at(0.4)
    z = draw(1, 1, *SHAPE).double()
    _, posterior = plain.posterior(z, z, t, s)
    _, b = SCHEDULE.transition(s, t)
    for spread, expected in ((0.0, posterior), (1.0, b.sqrt())):
        found = LEARNED.deviation(torch.full_like(z, spread), t, s)
        torch.testing.assert_close(found, expected.view(1, 1, 1, 1, 1).expand_as(found))
    middle = LEARNED.deviation(torch.full_like(z, 0.5), t, s)[0, 0, 0, 0, 0]
    assert float(middle) == pytest.approx(float((posterior * b.sqrt()).sqrt()))


def test_channels_of_mean_and_variance():
    assert (LEARNED.outputs(3), Gaussian(SCHEDULE).outputs(3)) == (6, 3)
    z_t, t, noise = draw(1, 2, *SHAPE), at(0.5), draw(1, 2, *SHAPE, seed=4)
    mean, spread = draw(1, 2, *SHAPE, seed=6), draw(1, 2, *SHAPE, seed=7)
    both, plain = torch.cat([mean, spread], 1), Gaussian(SCHEDULE)
    p = LEARNED.predict(both, z_t, t)
    torch.testing.assert_close(p.x0, plain.predict(mean, z_t, t).x0)
    torch.testing.assert_close(p.spread, (1 + spread) / 2)
    torch.testing.assert_close(
        LEARNED.loss(both, z_t, z_t, t, noise), plain.loss(mean, z_t, z_t, t, noise)
    )
    # a network that says -1 walks as if nothing were learnt; the state at 0 has no noise
    still = replace(p, spread=torch.zeros_like(z_t))
    for s in (at(0.2), at(0.0)):
        without = plain.step(replace(p, spread=None), z_t, t, s, noise)
        torch.testing.assert_close(LEARNED.step(still, z_t, t, s, noise), without)


def test_a_sampler_uses_it_and_refuses_a_second_one():
    z, t = draw(1, 1, *SHAPE), at(1.0)

    def denoise(z_t, u, condition):
        return replace(Prediction.from_x0(0 * z_t, z_t, *SCHEDULE(u)), spread=torch.ones_like(z_t))

    def noise(step):
        return draw(1, 1, *SHAPE, seed=10 + step)

    times = torch.tensor([1.0, 0.5], dtype=torch.float64)
    found = Ancestral(1).sample(denoise, LEARNED, z, times, noise=noise)
    mean, _ = LEARNED.posterior(0 * z, z, t, at(0.5))
    _, b = SCHEDULE.transition(at(0.5), t)
    torch.testing.assert_close(found, mean + b.sqrt().float() * noise(0))
    hooked = Ancestral(1).sample(
        denoise, LEARNED, z, times, noise=noise, on_x0=lambda c: (c.prediction.x0 + 0, c.z_t)
    )
    torch.testing.assert_close(hooked, found)
    with pytest.raises(ValueError, match=r"expected 0 for a kernel that learned its own, got 0.5"):
        Ancestral(1, variance=0.5).sample(denoise, LEARNED, z, times, noise=noise)


def test_the_bound_is_the_divergence_of_two_gaussians():
    x, levels = masks(1), 100
    output = draw(2, 2, *SHAPE, seed=8)
    c = context(x, output, kernel=LEARNED, t=at(0.3, 0.8))
    s = c.t - 1 / levels
    mean, deviation = LEARNED.posterior(x, c.z_t, c.t, s)
    mine, _ = LEARNED.posterior(c.prediction.x0, c.z_t, c.t, s)
    p = Normal(mine, LEARNED.deviation(c.prediction.spread, c.t, s))
    q = Normal(mean, deviation.float().view(-1, 1, 1, 1, 1))
    expected = kl_divergence(q, p).flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(VariationalBound(levels=levels)(c), expected, rtol=2e-3, atol=1e-5)


def test_the_last_step_is_a_likelihood_of_cells():
    x = masks(1)
    output = draw(2, 2, *SHAPE, seed=8) * 0.01
    c = context(x, output, kernel=LEARNED, t=at(0.005, 0.009))
    p = Normal(c.prediction.x0, LEARNED.deviation(c.prediction.spread, c.t, c.t / 2))
    cells = (p.cdf(x + 1 / 255) - p.cdf(x - 1 / 255)).clamp(min=1e-30)
    expected = -cells.log().flatten(1).mean(1) / math.log(2)
    torch.testing.assert_close(VariationalBound(levels=100)(c), expected, rtol=1e-3, atol=1e-4)
    far = context(x, output + 5, kernel=LEARNED, t=at(0.005, 0.5))
    assert VariationalBound(levels=100)(far).isfinite().all()


def test_the_bound_trains_the_variance_alone():
    x = masks(1)
    output = draw(2, 2, *SHAPE, seed=8).requires_grad_()
    VariationalBound()(context(x, output, kernel=LEARNED)).sum().backward()
    assert float(output.grad[:, :1].abs().max()) == 0
    assert float(output.grad[:, 1:].abs().min()) > 0
    # least where the variance is that of the data around the mean
    levels, t = 20, at(0.5)
    c = context(x[:1], torch.zeros(1, 2, *SHAPE), kernel=LEARNED, t=t)
    s = t - 1 / levels
    of_data, deviation = LEARNED.posterior(c.z_0, c.z_t, t, s)
    of_model, _ = LEARNED.posterior(c.prediction.x0, c.z_t, t, s)
    wanted = (deviation.float() ** 2 + (of_data - of_model) ** 2).sqrt()
    _, b = SCHEDULE.transition(s, t)
    shrink = float((SCHEDULE(s)[1] / SCHEDULE(t)[1]).log())
    spread = 1 - (wanted.log() - 0.5 * float(b.log())) / shrink
    best = replace(c, prediction=replace(c.prediction, spread=spread.requires_grad_()))
    (slope,) = torch.autograd.grad(VariationalBound(levels=levels)(best).sum(), spread)
    assert float(slope.abs().max()) < 1e-6


# boundary


def test_distances_from_the_surface_by_brute_force():
    mask = torch.zeros((2, 5, 6, 7), dtype=torch.bool)
    mask[0, 1:4, 2:5, 1:6] = True
    spacing = (1.0, 2.0, 0.5)
    found = surface_distances_mm(mask, spacing_mm=spacing)
    inside = set(map(tuple, mask[0].nonzero().tolist()))
    steps = [np.eye(3, dtype=int)[i] * k for i in range(3) for k in (1, -1)]
    surface = [v for v in inside if any(tuple(np.array(v) + d) not in inside for d in steps)]
    scale = np.array(spacing)
    for v in np.ndindex(5, 6, 7):
        away = min(float(np.linalg.norm((np.array(v) - np.array(u)) * scale)) for u in surface)
        assert float(found[(0, *v)]) == pytest.approx(away, abs=1e-5)
    assert float(found[1].abs().max()) == 0, "no surface"
    found.zero_()
    assert float(surface_distances_mm(mask, spacing_mm=spacing).max()) > 0, "what is kept is ours"


def test_weights_near_the_surface():
    x = torch.full((1, 2, *SHAPE), -1.0)
    x[:, 0, 1:3, 1:4, 1:5] = 1
    distance = surface_distances_mm(x[0] > 0, spacing_mm=(1.0, 1.0, 1.0))[None]
    term, m = Boundary(gamma=0.2), (x + 1) / 2
    for t in (0.25, 1.0):
        w = term.weights(distance, m, at(t))
        expected = (1 - distance[:, :1] / distance[:, :1].max()) ** ((0.2 * (1 - t)) ** 0.2)
        torch.testing.assert_close(w[:, :1], expected)
        assert float((w[:, 1:] - 1).abs().max()) == 0, "a label that is not there"
    assert float((term.weights(distance, m, at(1.0)) - 1).abs().max()) == 0
    few = Boundary(least=0.9).weights(distance, m, at(0.25))
    assert float((few - 1).abs().max()) == 0


@pytest.mark.parametrize("space", [Voxel(), Wavelet()], ids=["voxel", "wavelet"])
@pytest.mark.parametrize("prediction", ["eps", "v", "x0"])
def test_boundary_weighs_the_errors_in_voxels(space, prediction):
    x, kernel = masks(shape=(4, 6, 6)), Gaussian(SCHEDULE, prediction=prediction)
    distance = draw(2, 2, 4, 6, 6, seed=3).abs()
    z_0 = space.encode(x)
    output = draw(*z_0.shape, seed=6)
    c = context(x, output, kernel=kernel, space=space, distance_mm=distance)
    error = space.decode(output - kernel.target(c.z_0, c.t, c.noise))
    w = Boundary().weights(distance, c.truth, c.t)
    torch.testing.assert_close(
        Boundary()(c), (w * error.square()).flatten(1).mean(1), rtol=1e-4, atol=1e-6
    )
    # with weights of 1 it is the kernel's own loss
    flat = Boundary(least=1.0)(c)
    torch.testing.assert_close(
        flat, kernel.loss(output, c.z_0, c.z_t, c.t, c.noise), rtol=1e-4, atol=1e-6
    )
    assert Boundary().weight == 0.25


# agreement of encoders


def test_divergence_of_the_encoders():
    term, x = LatentKL(latent=3, widths=(4, 6)), masks(1)
    torch.manual_seed(0)
    side = term.side(1, 1)
    output = draw(2, 1, *SHAPE, seed=4).requires_grad_()
    kernel = Gaussian(SCHEDULE, prediction="eps")
    c = context(x, output, kernel=kernel, side=side)
    mean_p, log_p = side["prior"](torch.cat([c.images[0], output], 1))
    mean_q, log_q = side["posterior"](torch.cat([c.images[0], x], 1))
    expected = kl_divergence(Normal(mean_q, log_q.exp()), Normal(mean_p, log_p.exp())).sum(1)
    found = term(c)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    assert float(output.grad.abs().max()) > 0, "it is not detached"
    assert term.weight == 1e-3
    assert {len(level) for level in GaussianEncoder(1, 2, (4, 8)).levels} == {6}


def test_wrong_arguments():
    for wrong, message in (
        (lambda: Dice(weight=-1.0), "weight of at least 0, got -1"),
        (lambda: Dice(smooth=0.0), "smooth above 0 voxels"),
        (lambda: CrossEntropy(classes=(0.0, 0.0)), "weights of at least 0, one of them above"),
        (lambda: Boundary(least=2.0), r"gamma of at least 0 and least in \[0, 1\]"),
        (lambda: VariationalBound(levels=0), "levels >= 1, got 0"),
        (lambda: LatentKL(latent=0), "latent >= 1"),
    ):
        with pytest.raises(ValueError, match=message):
            wrong()
