"""Denoising diffusion GANs: laws of the chain, losses by hand, latents, training, refusals."""

import math
from dataclasses import replace

import pytest
import torch
from tiny_runs import figures, tiny, write_data
from torch import nn

from volumediff.anomaly.adaptation import AffineAdaptation
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.anomaly.routes.scan import Scan
from volumediff.batch import Batch
from volumediff.chain_noise import ChainNoise, latents
from volumediff.compatibility.training import comparison_problem
from volumediff.condition import Condition
from volumediff.contracts.scenes import example
from volumediff.denoising_gan import (
    TransitionDiscriminator,
    discriminator_loss,
    energy_score,
    generator_loss,
    penalised,
    spread,
    transition,
)
from volumediff.errors import UsageError
from volumediff.features.denoiser import denoiser_problem
from volumediff.kernels._base import Prediction
from volumediff.kernels.edm import EDM
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks.unet import UNet
from volumediff.randomness import normal
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.posterior_spans import PosteriorSpans
from volumediff.samplers.student import Student
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.schedules.exploding import Exploding
from volumediff.schedules.linear import LinearSchedule
from volumediff.segmentation.predictors.one_step import OneStep
from volumediff.spaces.voxel import Voxel
from volumediff.tasks import build_task, load_task
from volumediff.training.loop import train

S = 0.488  # standard deviation of the data in T12
KERNEL = Gaussian(LinearSchedule(), prediction="x0")
WORDS = (
    "task=denoising_gan",
    "space=voxel",
    "kernel={name: gaussian, schedule: linear, prediction: x0}",
    "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}",
    "gan={steps: 2, latent: 5, widths: [4, 8], penalty_every: 2}",
    "validation.every=2",
)


def gaussian_denoiser(*, exact):
    """Draws from p(z_0 | z_t) of data N(0, S^2) by the latent's first number, or its mean."""

    def denoise(z_t, t, condition):
        alpha, sigma = KERNEL.schedule(t)
        total = (alpha * S).square() + sigma.square()
        x0 = per_sample(alpha * S * S / total, z_t) * z_t
        if exact:
            latent = condition.latent[:, 0].to(z_t)
            x0 = x0 + per_sample((S * S * sigma.square() / total).sqrt() * latent, z_t)
        return Prediction.from_x0(x0, z_t, alpha, sigma)

    return denoise


def standard_deviation(steps, *, exact):
    """That of samples of a chain, which is linear in all that is drawn: by unit impulses."""

    class Impulses(ChainNoise):
        def conditioned(self, condition, step):
            latent = torch.zeros(1 + 2 * steps, 1, dtype=torch.float64)
            latent[1 + step] = 1
            return condition.replace(latent=latent)

    def field(step):
        noise = torch.zeros(1 + 2 * steps, 1, 1, 1, 1, dtype=torch.float64)
        noise[1 + steps + step] = 1
        return noise

    z_1 = torch.zeros(1 + 2 * steps, 1, 1, 1, 1, dtype=torch.float64)
    z_1[0] = 1
    sampler = PosteriorSpans(steps)
    ends = sampler.sample(
        gaussian_denoiser(exact=exact),
        KERNEL,
        z_1,
        sampler.times(KERNEL.schedule),
        noise=Impulses((), field, 1),
    )
    return float(ends.square().sum().sqrt())


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_generator_that_draws_from_the_posterior_keeps_the_law_of_the_data(steps):
    assert standard_deviation(steps, exact=True) / S == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("steps", "kept"), [(1, 0.003), (2, 0.14), (4, 0.41)])
def test_a_generator_that_ignores_its_latent_loses_the_spread_of_the_data(steps, kept):
    assert standard_deviation(steps, exact=False) / S == pytest.approx(kept, rel=0.05)


def test_spans_from_any_start():
    sampler = PosteriorSpans(4)
    assert sampler.times(KERNEL.schedule).tolist() == [1, 0.75, 0.5, 0.25, 0]
    assert sampler.times(KERNEL.schedule, 0.6).tolist() == pytest.approx([0.6, 0.35, 0.1, 0])
    assert sampler.times(KERNEL.schedule, 0.5).tolist() == [0.5, 0.25, 0]
    assert sampler.times(KERNEL.schedule, 0.01).tolist() == [0.01, 0]


def draws(scale, *, same=False):
    """Clean states N(0, 1), and two draws N(0, scale^2)."""
    size = (400, 2, 3, 3, 3)
    one, two = (scale * normal(size, "draw", 0 if same else i) for i in range(2))
    return one, two, normal(size, "data")


def test_the_score_is_least_for_draws_of_the_law_of_the_data():
    right = energy_score(*draws(1.0)).mean()
    for other in (draws(0.0), draws(0.5), draws(1.5), draws(1.0, same=True)):
        assert energy_score(*other).mean() > right + 0.01
    z_0 = draws(1.0)[2]
    assert torch.equal(energy_score(z_0, z_0, z_0), torch.zeros(400))
    # by hand: both at distance 2 from the data and 4 from each other
    a = torch.full((1, 1, 2, 2, 2), 2.0)
    assert float(energy_score(a, -a, 0 * a)) == 0
    assert float(energy_score(a, a, 0 * a)) == 2
    assert float(spread(a, -a, 0 * a)) == 4
    assert float(spread(a, a, a)) == 0


def test_the_spread_is_one_for_exact_draws_and_zero_for_functions_of_the_state():
    assert float(spread(*draws(1.0)).mean()) == pytest.approx(1, abs=0.05)
    assert float(spread(*draws(0.5)).mean()) == pytest.approx(0.5 / 1.25, abs=0.05)
    assert float(spread(*draws(1.0, same=True)).mean()) == 0


def model(channels=2, **network):
    torch.manual_seed(0)
    net = UNet(channels, channels, widths=(4, 8), blocks=1, groups=2, **network)
    net.take_latent(3)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.3)
    return Model(Voxel(), KERNEL, net)


def test_a_true_step_has_the_law_of_the_kernel():
    """z_s is clean at the end of the chain, and z_t has the noise of t whatever s is."""
    x = torch.full((3, 2, 12, 12, 12), 0.7)
    t = torch.tensor([0.2, 0.5, 1.0], dtype=torch.float64)
    found = transition(model(), Batch(x, (1, 2, 3)), steps=4, player="network", t=t)
    assert found.s.tolist() == pytest.approx([0, 0.25, 0.75])
    assert torch.equal(found.z_s[0], x[0])
    for i, (alpha, sigma) in enumerate(zip(*KERNEL.schedule(t), strict=True)):
        assert float(found.z_t[i].mean()) == pytest.approx(0.7 * float(alpha), abs=0.06)
        assert float(found.z_t[i].std()) == pytest.approx(float(sigma), rel=0.05)
    # it is z_s with more noise: what is left of z_t is independent of z_s, of the known variance
    gain, variance = KERNEL.schedule.transition(found.s, t)
    rest = found.z_t - per_sample(gain, x) * found.z_s
    assert float(rest[2].std()) == pytest.approx(float(variance[2].sqrt()), rel=0.05)
    pair = torch.stack((rest[2].flatten(), found.z_s[2].flatten()))
    assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.06


class Linear(nn.Module):
    """D(z_s, ...) = <w, z_s>, whose gradient is w."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, z_s, z_t, t, condition):
        assert len(z_s) == len(z_t) == len(t) == len(condition.label)
        return (self.w * z_s).flatten(1).sum(1)


def test_losses_by_hand_and_a_lazy_penalty():
    keys = tuple(range(40))
    chosen = torch.tensor([penalised(k, 4) for k in keys])
    assert 3 < int(chosen.sum()) < 20
    w = normal((1, 2, 2, 2), "w", dtype=torch.float64)
    x = normal((40, 1, 2, 2, 2), "x", dtype=torch.float64)
    fake = normal((40, 1, 2, 2, 2), "fake", dtype=torch.float64)
    step = transition(
        model(1),
        Batch(x.float(), keys),
        steps=2,
        player="discriminator",
        t=torch.ones(40).double(),
    )
    label = torch.zeros(40, dtype=torch.int64)
    step = replace(step, z_s=x, z_t=fake, condition=Condition(label=label))
    judge = Linear(w)
    real, false = ((w * a).flatten(1).sum(1) for a in (x, fake))
    plain = (1 + (-real).exp()).log() + (1 + false.exp()).log()
    loss = discriminator_loss(judge, step, fake, penalty=0.6, every=4)
    expected = plain + 0.3 * w.square().sum() * chosen
    torch.testing.assert_close(loss.detach(), expected)
    # the gradient of the penalty is that of a second derivative: gamma w per penalised sample
    loss.sum().backward()
    slopes = [torch.sigmoid(false)[:, None], -torch.sigmoid(-real)[:, None]]
    of_plain = sum((s * a.flatten(1)).sum(0) for s, a in zip(slopes, (fake, x), strict=True))
    by_hand = of_plain + 0.6 * w.flatten() * chosen.sum()
    torch.testing.assert_close(judge.w.grad.flatten(), by_hand)
    torch.testing.assert_close(
        generator_loss(judge, step, fake).detach(), (1 + (-false).exp()).log()
    )
    none = discriminator_loss(judge, step, fake, penalty=0.0, every=1)
    torch.testing.assert_close(none.detach(), plain)


def test_the_discriminator_sees_the_step_and_all_that_the_generator_is_conditioned_on():
    judge = TransitionDiscriminator(
        2, image_channels=1, classes=2, scalars=1, coordinates=True, widths=(4, 8)
    ).double()
    z, one = normal((2, 2, 5, 6, 3), "z", dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    given = {
        "image": normal((2, 1, 5, 6, 3), "i", dtype=torch.float64).requires_grad_(),
        "label": torch.tensor([0, 1]),
        "scalars": normal((2, 1), "s", dtype=torch.float64),
        "coordinates": normal((2, 3, 5, 6, 3), "c", dtype=torch.float64),
    }
    condition = Condition(**given)
    found = judge(z, z + 1, one / 2, condition)
    assert found.shape == (2,)
    alone = judge(z[1:], z[1:] + 1, one[1:] / 2, condition.map(lambda a: a[1:]))
    torch.testing.assert_close(alone, found[1:])
    for changed in (
        judge(z + 0.5, z + 1, one / 2, condition),
        judge(z, z + 1.5, one / 2, condition),
        judge(z, z + 1, one / 3, condition),
        *(
            judge(z, z + 1, one / 2, condition.replace(**{n: 1 - v if n == "label" else v + 0.5}))
            for n, v in given.items()
        ),
    ):
        assert not torch.isclose(changed, found).any()
    found.sum().backward()
    assert given["image"].grad is None, "an encoder of images learns from the network's loss alone"
    assert all(p.grad.any() for p in judge.parameters())


def test_latents_follow_from_key_and_step_alone():
    both = model().noise((5, 9), (2, 4, 4, 4))
    alone = model().noise((9,), (2, 4, 4, 4))
    first, second = (both.conditioned(Condition(), i).latent for i in range(2))
    assert torch.equal(first[1:], alone.conditioned(Condition(), 0).latent)
    assert first.shape == (2, 3)
    assert not torch.isclose(first, second).any()
    assert float(latents(range(2000), 3, "x").std()) == pytest.approx(1, abs=0.03)
    plain = Model(Voxel(), KERNEL, UNet(2, 2, widths=(4,), blocks=1, groups=2))
    assert plain.noise((5,), (2, 4, 4, 4)).conditioned(Condition(), 0).latent is None
    with pytest.raises(ValueError, match=r"takes 3 numbers of Condition.latent, got 0"):
        model().denoise(torch.zeros(1, 2, 4, 4, 4), torch.ones(1))
    with pytest.raises(ValueError, match=r"takes 0 numbers of Condition.latent, got 3"):
        plain.denoise(
            torch.zeros(1, 2, 4, 4, 4), torch.ones(1), Condition(latent=torch.zeros(1, 3))
        )


def test_a_sample_does_not_depend_on_its_batch_and_another_latent_is_another_sample():
    generator, sampler = model(), PosteriorSpans(3)

    def sample(*keys):
        noise = generator.noise(keys, (2, 5, 4, 3))
        with torch.no_grad():
            return sampler.sample(
                generator.denoise, KERNEL, noise(-1), sampler.times(KERNEL.schedule), noise=noise
            )

    torch.testing.assert_close(sample(3, 4), torch.cat([sample(3), sample(4)]))
    noise = generator.noise((3,), (2, 5, 4, 3))
    other = ChainNoise((8,), noise.field, noise.length)
    with torch.no_grad():
        changed = sampler.sample(
            generator.denoise, KERNEL, noise(-1), sampler.times(KERNEL.schedule), noise=other
        )
    assert not torch.isclose(changed, sample(3), atol=1e-3).all()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("gan"), cases=6)


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    return train(tiny(data, tmp_path_factory.mktemp("whole") / "run", *WORDS, "optim.steps=4"))


def test_a_run_goes_on_as_if_it_had_not_stopped(data, whole, tmp_path):
    train(tiny(data, tmp_path / "run", *WORDS, "optim.steps=2"))
    parts = train(tiny(data, tmp_path / "run", *WORDS, "optim.steps=4"))
    assert figures(parts) == figures(whole)
    rows = figures(whole)
    assert all(math.isfinite(r["loss_discriminator"]) for r in rows if "loss" in r)
    assert all(r["spread"] >= 0 for r in rows if "validation_loss" in r)
    mine, other = (load_task(run, which="last").state() for run in (parts, whole))
    assert all(torch.equal(mine[name], tensor) for name, tensor in other.items())


def test_a_generator_that_ignores_its_latent_raises_an_alarm(whole, capsys):
    task = load_task(whole)
    (line,) = task.alarms({"spread": 0.1})
    assert line.startswith("mode collapse: two draws for the same noisy volume differ by 0.10")
    assert task.alarms({"spread": 0.9}) == ()
    assert task.alarms({}) == ()


def test_a_generator_begins_as_the_model_that_it_begins_with(data, tmp_path):
    kernel = "kernel={name: gaussian, schedule: linear, prediction: v}"
    moved = ("optim.steps=4", "optim.lr=5e-2", "validation.every=4")
    teacher = train(tiny(data, tmp_path / "teacher", kernel, *moved))
    words = (*WORDS, kernel, f"start_from={teacher}")
    task = build_task(tiny(data, tmp_path / "run", *words))
    said = task.begin_with(load_task(teacher), where="start_from")
    assert "new: mapping.layers, mapping.out" in said
    z, t = normal((2, 1, 8, 8, 8), "z"), torch.tensor([0.3, 1.0], dtype=torch.float64)
    mine = task.model.denoise(z, t, Condition(latent=normal((2, 5), "latent")))
    theirs = load_task(teacher).result.denoise(z, t)
    assert torch.equal(mine.x0, theirs.x0)
    nn.init.normal_(task.model.network.mapping.out.weight)
    changed = task.model.denoise(z, t, Condition(latent=normal((2, 5), "latent")))
    assert not torch.isclose(changed.x0, theirs.x0).all(), "the embedding matters to it"
    other = build_task(tiny(data, tmp_path / "other", *WORDS))
    with pytest.raises(UsageError, match=r"start_from: expected the kernel of this run"):
        other.begin_with(load_task(teacher), where="start_from")


LEARNED = "kernel={name: gaussian, schedule: linear, variance: learned}"


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((LEARNED, "losses=[vlb]"), "variance posterior"),
        (("recipe=local_noise",), "expected noise everywhere"),
        (("losses=[l1_state]",), "leave losses out"),
        (("validation.best={volumes: 1}",), "expected null for a denoising diffusion GAN"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(words, text, data, tmp_path):
    with pytest.raises(UsageError, match=text) as error:
        build_task(tiny(data, tmp_path / "run", *WORDS, *words))
    assert "\n" not in str(error.value)


def test_methods_that_ask_for_means_refuse_draws_before_they_run():
    generator = model(1)
    generator.walk = PosteriorSpans(4)
    noised = Diffuse(level=0.6)
    walking = Localizer(route=noised, sampler=Student())
    walking.check(generator)
    found = walking.find(generator, example(), key=1).map
    assert torch.equal(walking.find(generator, example(), key=1).map, found)
    assert not torch.equal(walking.find(generator, example(), key=2).map, found)
    for method in (
        Localizer(route=Scan(levels=(0.5,))),
        Localizer(route=noised, sampler=Student(), adapt=AffineAdaptation()),
        Localizer(route=noised, sampler=DDIM(4)),
    ):
        with pytest.raises(ValueError, match=r"sampler=student"):
            method.check(generator)
    assert "takes a random latent" in denoiser_problem(generator)
    assert "predicts draws (posterior_spans)" in comparison_problem(generator)
    labels = Model(
        Voxel(), KERNEL, model(1).network, recipe=LabelDiffusion(labels=(1,)), walk=generator.walk
    )
    with pytest.raises(ValueError, match="single predictions are means"):
        OneStep().check(labels)


def test_the_discriminator_sees_growing_states_as_the_network_does():
    kernel = EDM(Exploding())
    net = model().network
    one = Model(Voxel(), kernel, net)
    t = torch.tensor([0.6, 1.0], dtype=torch.float64)
    step = transition(
        one, Batch(normal((2, 2, 6, 6, 6), "x"), (1, 2)), steps=4, player="discriminator", t=t
    )
    assert step.z_t[1].std() > 50
    seen = []

    def judge(z_s, z_t, t, condition):
        seen.extend([z_s, z_t])
        return z_s.flatten(1).mean(1)

    with torch.no_grad():
        fake = step.generated(one)
    discriminator_loss(judge, step, fake, penalty=1.0, every=1)
    assert len(seen) == 6, "real, drawn, penalised"
    assert all(0.5 < float(a.detach()[i].std()) < 1.5 for a in seen for i in range(2))


def test_zero_terminal_snr():
    """At t = 1 nothing of the data is left, and a step starts from noise alone."""
    kernel = Gaussian(Cosine(zero_terminal_snr=True), prediction="v")
    net = model().network
    x, t = torch.ones(1, 2, 4, 4, 4), torch.ones(1, dtype=torch.float64)
    one = Model(Voxel(), kernel, net)
    steps = [transition(one, Batch(a, (7,)), steps=1, player="network", t=t) for a in (x, -x)]
    assert torch.equal(steps[0].z_t, steps[1].z_t)
    with torch.no_grad():
        assert steps[0].generated(one).isfinite().all()
