"""Discrete kernels of label maps: any law at the end, skipped levels, the transform inside."""

import math
from itertools import pairwise, product

import pytest
import torch

from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.kernels.discrete import Discrete
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import LEAST, LabelProbabilities, Model
from volumediff.networks.unet import UNet
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.discrete_ddim import DiscreteDDIM
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.linear import LinearSchedule
from volumediff.spaces.slices import Slices
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet

LINEAR, ZERO = LinearSchedule(), Cosine(zero_terminal_snr=True)
CLASSES = [2, 3, 5]
STEPS = [1, 2, 5, 20, 1000]


def at(*values):
    return torch.tensor(values, dtype=torch.float64)


def state(c, k):
    """One variable of class c, (1, 1 or k, 1, 1, 1)."""
    one = 2 * torch.nn.functional.one_hot(torch.tensor([c]), k).double() - 1
    return (one[:, :1] if k == 2 else one)[..., None, None, None]


def coded(p, k):
    """Probabilities (k,) as E[z]."""
    x = 2 * torch.as_tensor(p, dtype=torch.float64) - 1
    return (x[:1] if k == 2 else x)[None, :, None, None, None]


def table(p):
    """Probabilities (k,) as the kernel takes them."""
    return torch.as_tensor(p, dtype=torch.float64)[None, None, :, None, None, None]


def tables(p):
    """The same for samples of one variable each, (n, k)."""
    return p[:, None, :, None, None, None]


def drawn_prior(k, seed=0):
    p = torch.rand(k, generator=torch.Generator().manual_seed(seed + k)).double() + 0.05
    return p / p.sum()


def alpha_bar(kernel, t):
    return float(kernel.schedule(at(t))[0] ** 2)


def forward(kernel, s, t, law):
    """q(z_t | z_s): row of the old class, written out."""
    a = alpha_bar(kernel, t) / alpha_bar(kernel, s)
    return a * torch.eye(len(law)).double() + (1 - a) * law[None]


def law_of(kernel, k):
    if kernel.law is None:
        return torch.full((k,), 1 / k, dtype=torch.float64)
    return kernel._split(kernel.law).flatten()


# T2: marginals and their composition


def check_marginals(kernel):
    """q(z_t = 1 | z_0) of a bit, with the quantiles of noise in place of draws."""
    n = 20_000
    u = (torch.arange(n).double() + 0.5) / n
    noise = torch.special.ndtri(u).reshape(1, 1, n, 1, 1)
    for t, value in product((0.2, 0.5, 0.9, 1.0), (1.0, -1.0)):
        z_t = kernel.corrupt(torch.full_like(noise, value), at(t), noise)
        share = float((z_t > 0).double().mean())
        other = (1 - alpha_bar(kernel, t)) / 2
        expected = other if value < 0 else 1 - other
        assert share == pytest.approx(expected, abs=2 / n), (t, value)


class TwoStatements(Discrete):
    """The released code of BerDiff: the mean of q(z_t | z_0) is the first of two statements."""

    def _redrawn(self, z, kept, lost, noise):
        p = kept.to(z)[:, None, None, None, None] * (1 + z) / 2
        return self._draw(torch.stack([p, 1 - p], dim=2), noise)


@pytest.mark.parametrize("schedule", [LINEAR, ZERO], ids=["linear", "zero"])
def test_absent_bits_flip_too(schedule):
    check_marginals(Discrete(schedule))
    with pytest.raises(AssertionError):
        check_marginals(TwoStatements(schedule))


@pytest.mark.parametrize("k", CLASSES)
@pytest.mark.parametrize("own", [False, True], ids=["uniform", "law"])
def test_marginals_are_composed_of_steps(k, own):
    law = drawn_prior(k, 7) if own else torch.full((k,), 1 / k, dtype=torch.float64)
    kernel = Discrete(LINEAR, classes=k)
    kernel = kernel.given(coded(law, k)) if own else kernel

    def moved(kept):
        return torch.stack(
            [kernel._mixed(state(c, k), kept, 1 - kept).flatten() for c in range(k)]
        )

    made = torch.eye(k).double()
    for s, t in pairwise(torch.linspace(0, 1, 301).double().tolist()):
        step = moved(kernel._kept(at(s), at(t)))
        torch.testing.assert_close(step, forward(kernel, s, t, law), rtol=0, atol=1e-15)
        made = made @ step
    torch.testing.assert_close(made, moved(LINEAR(at(1.0))[0] ** 2), rtol=0, atol=1e-12)


# T3: the posterior by enumeration, with levels skipped


@pytest.mark.parametrize("k", CLASSES)
@pytest.mark.parametrize("times", [(0.0, 0.05, 0.06), (0.0, 0.01, 0.3), (0.0, 0.3, 0.999)])
def test_posterior_with_a_law_of_its_own(k, times):
    law, prior = drawn_prior(k, 1), drawn_prior(k, 2)
    kernel = Discrete(LINEAR, classes=k).given(coded(law, k))
    _, s, t = times
    up, down = forward(kernel, 0.0, s, law), forward(kernel, s, t, law)
    for last in range(k):
        joint = prior[:, None] * up * down[:, last][None]  # z_0, z_s
        wanted = joint.sum(0) / joint.sum()
        p = joint.sum(1) / joint.sum()  # of z_0
        found = kernel.posterior(table(p), state(last, k), at(t), at(s)).flatten()
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


# T4: chains with the true p(z_0 | z_t)


def chain(kernel, prior, steps, move):
    """Law of the end of a chain over one variable, tabulated: exact."""
    k = len(prior)
    law, every = law_of(kernel, k), torch.cat([state(c, k) for c in range(k)])
    current = law.clone()
    if not kernel.schedule.zero_terminal_snr:
        # the chain starts where the forward process ends
        current = prior @ forward(kernel, 0.0, 1.0, law)
    for t, s in pairwise(torch.linspace(1, 0, steps + 1).double().tolist()):
        p = (prior[:, None] * forward(kernel, 0.0, t, law)).T  # row: the class of z_t
        current = current @ move(kernel, p / p.sum(1, keepdim=True), every, t, s)
    return current


def ancestral(kernel, p, z_t, t, s):
    """Row: the class of z_t, column: that of z_s."""
    n = len(p)
    return kernel.posterior(tables(p), z_t, at(t).expand(n), at(s).expand(n)).flatten(1)


def skipping(share):
    def move(kernel, p, z_t, t, s):
        n = len(p)
        times = at(t).expand(n), at(s).expand(n)
        return kernel.skip(tables(p), z_t, *times, share=share).flatten(1)

    return move


def plugged(kernel, p, z_t, t, s):
    """q(z_s | z_t, z_0) with the soft prediction in place of z_0, as BerDiff samples."""
    law, now = law_of(kernel, p.shape[1]), kernel._split(z_t).flatten(1)
    a = alpha_bar(kernel, t) / alpha_bar(kernel, s)
    soft = alpha_bar(kernel, s) * p + (1 - alpha_bar(kernel, s)) * law
    wrong = (a * now + (1 - a) * (law * now).sum(1, keepdim=True)) * soft
    return wrong / wrong.sum(1, keepdim=True)


MOVES = {"ancestral": ancestral, **{f"skip {g}": skipping(g) for g in (0.0, 0.5, 1.0)}}


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize(
    ("steps", "k"), [(n, k) for n, k in product(STEPS, CLASSES) if n < 1000 or k == 2]
)
def test_chains_of_one_variable_are_exact_at_any_number_of_steps(move, steps, k):
    for own in (False, True):
        kernel = Discrete(ZERO, classes=k)
        kernel = kernel.given(coded(drawn_prior(k, 5), k)) if own else kernel
        prior = at(0.01, 0.99) if k == 2 else drawn_prior(k, 3)
        found = chain(kernel, prior, steps, MOVES[move])
        torch.testing.assert_close(found, prior, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("rare", "biased"), [(0.10, 0.25), (0.01, 0.091)])
def test_the_published_posterior_makes_rare_classes_frequent(rare, biased):
    kernel, prior = Discrete(LINEAR), at(rare, 1 - rare)
    wrong = chain(kernel, prior, 1000, plugged)
    assert float(wrong[0]) == pytest.approx(biased, abs=0.002)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(wrong, prior, rtol=0, atol=0.05)


def pair(kernel, rare, steps):
    """Share of ones and of disagreement of two voxels that are always equal, drawn apart."""
    law = torch.full((2, 2), 0.25).double()
    for t, s in pairwise(torch.linspace(1, 0, steps + 1).double().tolist()):
        f, new = forward(kernel, 0.0, t, at(0.5, 0.5)), torch.zeros(2, 2).double()
        for i, j in product(range(2), repeat=2):
            one, none = rare * f[0, i] * f[0, j], (1 - rare) * f[1, i] * f[1, j]
            p = torch.stack([one, none])[None] / (one + none)
            both = torch.cat([state(c, 2) for c in (i, j)])
            new += law[i, j] * torch.outer(*ancestral(kernel, p.expand(2, -1), both, t, s))
        law = new
    return float(law[0].sum()), float(law[0, 1] + law[1, 0])


@pytest.mark.parametrize(
    ("steps", "ones", "apart"), [(10, 0.0689, 0.0313), (50, 0.0875, 0.0018), (250, 0.0971, 1e-4)]
)
def test_coherence_of_voxels_needs_steps(steps, ones, apart):
    found = pair(Discrete(LINEAR), 0.1, steps)
    assert found == (pytest.approx(ones, abs=1e-3), pytest.approx(apart, abs=1e-3))


# samplers, readings, classes


def test_skipping_is_drawn_as_tabulated():
    kernel, share = Discrete(ZERO), 0.6
    p, t, s = 0.3, at(0.8), at(0.4)
    z_t = torch.ones((1, 1, 40_000, 1, 1), dtype=torch.float64)
    z_t[:, :, 20_000:] = -1
    noise = torch.randn(z_t.shape, generator=torch.Generator().manual_seed(1)).double()

    def denoise(z, u, condition):
        return kernel.predict(torch.full_like(z, math.log(p / (1 - p))), z, u)

    seen = []

    def watch(context):
        seen.append(context.z_t)
        return context.prediction.x0, context.z_t

    times = torch.stack([t, s, at(0.0)])[:, 0]
    sampler = DiscreteDDIM(2, share=share)
    end = sampler.sample(denoise, kernel, z_t, times, noise=lambda i: noise, on_x0=watch)
    for part, c in ((seen[1][:, :, :20_000], 0), (seen[1][:, :, 20_000:], 1)):
        wanted = kernel.skip(table([p, 1 - p]), state(c, 2), t, s, share=share).flatten()[0]
        assert float((part > 0).double().mean()) == pytest.approx(float(wanted), abs=0.01)
    assert set(end.unique().tolist()) == {-1.0}, "the likeliest class"
    for sampler in (DiscreteDDIM(2, mean=True), Ancestral(2, mean=True)):
        end = sampler.sample(denoise, kernel, z_t, times, noise=lambda i: noise)
        torch.testing.assert_close(end, torch.full_like(end, 2 * p - 1), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"share in \[0, 1\], got 2"):
        DiscreteDDIM(2, share=2.0)
    with pytest.raises(ValueError, match="expected the kernel discrete for DiscreteDDIM, got"):
        DiscreteDDIM(2).check(Gaussian)


def test_noise_logits_are_a_reading_of_the_same_law():
    plain, xor = Discrete(ZERO), Discrete(ZERO, prediction="xor")
    z_0 = torch.tensor([1.0, 1, -1, -1]).reshape(4, 1, 1, 1, 1)
    z_t = torch.tensor([1.0, -1, 1, -1]).reshape(4, 1, 1, 1, 1)
    flip = torch.tensor([0.7, -0.2, 1.5, -2.0]).reshape(4, 1, 1, 1, 1)
    t = at(0.2, 0.4, 0.6, 0.8)
    differs = torch.sigmoid(flip)  # P(z_0 != z_t)
    x0 = xor.predict(flip, z_t, t).x0
    torch.testing.assert_close((1 - x0 * z_t) / 2, differs)
    logits = -z_t * flip
    torch.testing.assert_close(x0, plain.predict(logits, z_t, t).x0)
    losses = xor.loss(flip, z_0, z_t, t, z_t), plain.loss(logits, z_0, z_t, t, z_t)
    torch.testing.assert_close(*losses)
    with pytest.raises(ValueError, match="xor is about bits: expected classes 2, got 3"):
        Discrete(ZERO, classes=3, prediction="xor")


def test_open_classes_are_filled_in():
    assert Discrete(ZERO, classes=0).over(4).classes == 4
    assert Discrete(ZERO, classes=3).over(4).classes == 3
    with pytest.raises(ValueError, match="got 0; see over"):
        Discrete(ZERO, classes=0).prior(torch.zeros(1, 4, 2, 2, 2))
    with pytest.raises(ValueError, match="ends in noise alone, not in a law per voxel"):
        Gaussian(ZERO).given(torch.zeros(1, 1, 2, 2, 2))


# the network in wavelets, the noise in voxels


SPACES = {
    "wavelet": lambda: Wavelet(),
    "two levels": lambda: Wavelet("db2", levels=2),
    "slices": lambda: Slices(Wavelet(axes="hw"), axis="w"),
}


class Recorder(UNet):
    """Keeps what it was given."""

    def forward(self, z_t, t, condition=None):
        self.seen = z_t, condition
        return super().forward(z_t, t, condition)


def wrapped(space, labels=(1, 2), **more):
    recipe = LabelDiffusion(labels=labels)
    n, width = len(labels), space.channels(1)
    torch.manual_seed(0)
    network = Recorder(
        n * width, n * width, image_channels=width, widths=(4, 8), blocks=1, groups=2, **more
    )
    torch.nn.init.normal_(network.hourglass.head.weight)
    return Model(Voxel(), Discrete(ZERO), network, recipe=recipe, transform=space)


def batch(shape=(8, 12, 8), labels=2):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn((2, labels, *shape), generator=generator).sign()
    return Batch(x, (1, 2), images=(torch.randn((2, 1, *shape), generator=generator),))


@pytest.mark.parametrize("name", SPACES)
def test_the_transform_is_inside(name):
    space, b = SPACES[name](), batch()
    model = wrapped(space, coordinates=True)
    condition = model.told(Condition(), b.images)
    torch.testing.assert_close(condition.image, space.encode(b.images[0]))
    t = at(0.4, 0.7)
    p = model.denoise(b.x, t, condition).x0
    inner = space.encode(b.x)
    torch.testing.assert_close(model.network.seen[0], inner)
    place = model.network.seen[1].coordinates
    assert place.shape[2:] == inner.shape[2:]
    out = space.decode(model.network(inner, t, model.network.seen[1]), b.x.shape[2:])
    torch.testing.assert_close(p, 2 * torch.sigmoid(out) - 1, rtol=1e-4, atol=1e-5)
    model.loss(b).sum().backward()
    assert bool(model.network.hourglass.stem.weight.grad.abs().any())


def test_sizes_that_the_stride_does_not_divide():
    model, b = wrapped(Wavelet()), batch((7, 9, 8))
    assert model.loss(b).isfinite().all()
    noise = model.noise((1, 2), (2, 7, 9, 8))
    z = Ancestral(2).sample(
        model.denoise,
        model.kernel,
        model.kernel.prior(noise(-1)),
        Ancestral(2).times(ZERO),
        condition=model.told(Condition(), b.images),
        noise=noise,
    )
    assert model.decode(z).shape == b.x.shape
    assert set(z.unique().tolist()) <= {-1.0, 1.0}


# a law per voxel, from another network


class Thresholds(LabelProbabilities):
    """Probabilities of two labels that follow from the image."""

    labels = (1, 2)

    def probabilities(self, x, condition):
        one = torch.sigmoid(4 * x)
        return torch.cat([1 - one, 0.75 * one, 0.25 * one], dim=1)


def test_states_end_in_the_probabilities_of_another_network():
    recipe = LabelDiffusion(labels=(1, 2))
    network = Recorder(2, 2, image_channels=3, widths=(4,), blocks=1, groups=2)
    model = Model(Voxel(), Discrete(ZERO), network, recipe=recipe, prior=Thresholds())
    image = torch.linspace(-1, 1, 8).reshape(1, 1, 8, 1, 1).expand(1, 1, 8, 60, 60)
    condition = model.told(Condition(), (image,))
    assert condition.image.shape[1] == 3, "the image, and the probabilities of two labels"
    p = Thresholds().probabilities(image, condition)[:, 1:]
    floored = (1 - 3 * LEAST) * p + LEAST
    torch.testing.assert_close(condition.law, 2 * floored - 1)
    kernel = model.kernel_of(condition)
    z = kernel.prior(torch.randn((1, 2, 8, 60, 60), generator=torch.Generator().manual_seed(2)))
    shares = (z > 0).float().mean((3, 4))
    torch.testing.assert_close(shares, floored[..., 0, 0], rtol=0, atol=0.04)
    with pytest.raises(ValueError, match="the law of its volumes, got none"):
        model.kernel_of(Condition())
    b = batch()
    assert model.loss(b).isfinite().all()
    uniform = Model(Voxel(), Discrete(ZERO), network, recipe=recipe)
    assert uniform.kernel_of(Condition()) is uniform.kernel


def test_a_sure_and_wrong_prior_keeps_everything_finite():
    # the law has no mass where the label is: the kernel must still reach it
    k = Discrete(ZERO).given(torch.full((1, 1, 2, 2, 2), 2 * LEAST - 1))
    z_0, t = torch.ones(1, 1, 2, 2, 2), at(1.0)
    z_t = k.corrupt(z_0, t, torch.zeros_like(z_0))
    assert bool((z_t == -1).all())
    loss = k.loss(torch.full_like(z_0, 30.0), z_0, z_t, t, z_0)
    assert loss.isfinite().all()
    assert float(loss) < 1e-6
