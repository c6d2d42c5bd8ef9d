"""Masked Bernoulli localization: which bits may change, on priors of bits that are known."""

import pytest
import torch
import torch.nn.functional as F
from anomaly_models import SHAPE, SPACING, foreground, tiny_binary
from tiny_runs import tiny, write_data

from volumediff.anomaly.editing.flip import Flip
from volumediff.anomaly.editing.harmonise import Harmonise
from volumediff.anomaly.editing.plain import Plain
from volumediff.anomaly.maps.l1 import L1
from volumediff.anomaly.method_files import read_method
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods.localizer import Localizer
from volumediff.anomaly.routes.diffuse import Diffuse
from volumediff.calibration.of_run import load_method
from volumediff.errors import UsageError
from volumediff.inference.options import SampleOptions
from volumediff.inference.sample import sample as draw
from volumediff.kernels.discrete import Discrete
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.runs.trained import load_trained
from volumediff.samplers._base import Context
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.ddim import DDIM
from volumediff.schedules._base import per_sample
from volumediff.schedules.cosine import Cosine
from volumediff.spaces.latent import Latent
from volumediff.spaces.slices import Slices
from volumediff.spaces.voxel import Voxel
from volumediff.tasks import build_task
from volumediff.training.loop import train

SCHEDULE = Cosine(zero_terminal_snr=True)
INSIDE = foreground()
BLOCK = 4


class Bits(Voxel):
    """Volumes whose voxels are bits."""

    binary = True


class Logits(Network):
    """A network that is a function of state and time."""

    def __init__(self, function):
        super().__init__(1, 1)
        self.function = function

    @property
    def stride(self):
        return (1, 1, 1)

    def body(self, x, e):
        return x

    def forward(self, z_t, t, condition=None):
        return self.function(z_t, t)


def blocks(z_t, t):
    """Logits of bits that are equal within blocks, either value as likely: all noisy bits vote."""
    kept = SCHEDULE(t)[0].square()
    vote = torch.log((1 + kept) / (1 - kept).clamp(min=1e-12))
    sums = F.avg_pool3d(z_t, BLOCK) * BLOCK**3 * per_sample(vote, z_t)
    return F.interpolate(sums, scale_factor=BLOCK)


def model_of(function, space=None):
    return Model(space or Bits(), Discrete(SCHEDULE), Logits(function))


def row(editing, **slots):
    slots = {"route": Diffuse(level=0.4), "sampler": Ancestral(8), "map": L1()} | slots
    return Localizer(kernel=Discrete, editing=editing, **slots)


def healthy(seed=0):
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((1, 1, *(n // BLOCK for n in SHAPE)), generator=generator).sign()
    return F.interpolate(coarse, scale_factor=BLOCK)


def found(method, model, x, key=0):
    return method.find(model, Example(x, torch.ones_like(x, dtype=torch.bool), SPACING), key=key)


def test_a_block_of_flipped_bits_is_found_and_nothing_else():
    x = healthy()
    planted = torch.zeros(x.shape, dtype=torch.bool)
    planted[..., 4:6, 5:8, 1:3] = True
    sick = torch.where(planted, -x, x)
    got = found(row(Flip()), model_of(blocks), sick)
    assert torch.equal(got.healthy, x)
    assert torch.equal(got.map > 0, planted)
    assert bool(got.trace["flip/map"][planted].all()), "they were set free"
    # noise of the level changes bits elsewhere, and these are set free as well, to no effect
    assert 0 < float(got.trace["flip/map"][~planted].mean()) < 0.5
    quiet = found(row(Flip()), model_of(blocks), x)
    assert float(quiet.map.max()) == 0


def uncertain(z_t, t):
    """No bit is ever certain: 1 flips with probability 0.25, and -1 with 0.38."""
    return 0.8 * z_t + 0.3


@pytest.mark.parametrize("space", ["bits", "latent", "slices"])
def test_the_ends_are_identity_and_the_plain_chain(space):
    spaces = {
        "bits": Bits,
        "latent": lambda: Latent(tiny_binary()),
        "slices": lambda: Slices(Bits()),
    }
    model = model_of(uncertain, spaces[space]())
    x = healthy() if space != "latent" else 0.4 * torch.randn((1, 1, *SHAPE))
    own = found(row(Flip(1.0)), model, x)
    assert torch.equal(own.healthy, model.decode(model.encode(x), SHAPE))
    assert float(own.map.abs().max()) == 0
    assert float(own.trace["flip/map"].max()) == 0
    free, plain = (found(row(p), model, x) for p in (Flip(0.0), Plain()))
    assert torch.equal(free.healthy, plain.healthy)
    assert torch.equal(free.map, plain.map)
    assert float(free.trace["flip/map"].min()) == 1
    between = found(row(Flip(0.3)), model, x)
    assert not torch.equal(between.healthy, plain.healthy)
    assert not torch.equal(between.healthy, own.healthy)


def test_bits_that_are_free_stay_free():
    x, model = healthy(), model_of(uncertain)
    method = row(Flip(0.5))
    example = Example(x, INSIDE, SPACING)
    context = method._context(model, example, key=0, prior=None)
    keep = method.editing.hook(context)
    first, second = torch.zeros(x.shape, dtype=torch.bool), torch.zeros(x.shape, dtype=torch.bool)
    first[..., :2], second[..., 4] = True, True
    t, z_t = torch.tensor([0.4]).double(), healthy(1)
    masks = torch.zeros_like(first)
    for i, flips in enumerate((first, second, torch.zeros_like(first))):
        # p(z_0 != z_t) is 0.6 where it flips, and 0.45 elsewhere
        x0 = z_t * torch.where(flips, -0.2, 0.1)
        prediction = model.kernel.predict(2 * torch.atanh(x0), z_t, t)
        got, state = keep(Context(i, t, t / 2, z_t, prediction))
        masks = masks | flips
        assert state is z_t
        torch.testing.assert_close(got, torch.where(masks, x0, x), rtol=0, atol=1e-6)
        assert torch.equal(context.trace["flip/map"] > 0, masks)


def test_the_trace_is_the_share_of_each_latent_voxel():
    x = 0.4 * torch.randn((1, 1, *SHAPE))
    model = model_of(uncertain, Latent(tiny_binary()))
    method = row(Flip(0.5))
    context = method._context(model, Example(x, INSIDE, SPACING), key=0, prior=None)
    own = context.encode(x)
    assert set(own.unique().tolist()) == {-1.0, 1.0}
    x0 = own.clone()
    x0[0, 1, 2, 3, 1] *= -1
    t = torch.tensor([0.4]).double()
    prediction = model.kernel.predict(20 * x0, own, t)
    method.editing.hook(context)(Context(0, t, t / 2, own, prediction))
    share = torch.zeros((1, 1, *SHAPE))
    share[..., 4:6, 6:8, 2:4] = 1 / own.shape[1]
    assert torch.equal(context.trace["flip/map"], share)


def test_what_does_not_suit_it_is_refused():
    method = read_method("bernoulli")
    with pytest.raises(ValueError, match=r"flip: expected a space of bits, got voxel.*; use"):
        method.check(model_of(uncertain, Voxel()))
    gaussian = Model(Bits(), Gaussian(SCHEDULE), Logits(uncertain))
    with pytest.raises(ValueError, match=r"expected .* kernel discrete, got .* gaussian kernel"):
        method.check(gaussian)
    loose = Localizer(editing=Flip(), route=Diffuse(level=0.4), sampler=Ancestral(2))
    with pytest.raises(ValueError, match="discrete for the editing strategy flip, got gaussian"):
        loose.check(gaussian)
    with pytest.raises(ValueError, match="sampler: expected the kernel gaussian for DDIM, got"):
        row(Flip(), sampler=DDIM(2))
    with pytest.raises(ValueError, match="got discrete, which has its own steps; use ancestral"):
        row(Flip(), sampler=Ancestral(2, variance=0.5))
    with pytest.raises(ValueError, match=r"gaussian for the editing strategy harmonise, got .*;"):
        row(Harmonise(levels=(0.2,))).check(model_of(uncertain))
    with pytest.raises(ValueError, match=r"probability: expected one in \[0, 1\], got 1.5"):
        Flip(1.5)
    method.check(model_of(uncertain))


DISCRETE = "kernel={name: discrete, schedule: {name: cosine, zero_terminal_snr: true}}"
CODEC = "{name: binary, widths: [4, 4], strides: [[2, 2, 2]], blocks: 1, latent_channels: 4}"


def test_from_training_to_a_map(tmp_path):
    root = write_data(tmp_path / "data", size=(16, 16, 16))
    common = ["data.preprocessing.shape=[16,16,16]", "optim.steps=2", "validation.every=2"]
    nothing = ["task=autoencoder"]
    bits = tmp_path / "bits"
    train(tiny(root, bits, *common, *nothing, f"autoencoder={CODEC}"))
    latent = f"space={{name: latent, autoencoder: {bits}}}"
    shown = ["validation.previews=1", "validation.preview_steps=2"]
    config = tiny(root, tmp_path / "run", *common, latent, DISCRETE, *shown)
    run = train(config)
    assert list((run / "previews").glob("*.png"))
    trained = load_trained(run, which="last", device="cpu")
    space = trained.model.space
    assert (space.shift.tolist(), space.scale.tolist()) == ([0.0], [1.0])
    method = load_method(trained, "bernoulli", overrides=["sampler.steps=2"])
    example = next(trained.examples("validation"))
    got = method.localize(
        trained.model,
        example.x,
        foreground=example.foreground,
        spacing_mm=example.spacing_mm,
        key=0,
        condition=example.condition,
    )
    assert bool(torch.isfinite(got.map).all())
    assert got.mask is not None
    with pytest.raises(UsageError, match=r"does not suit .*expected"):
        load_method(trained, "ddpm")
    with pytest.raises(UsageError, match="sampler: expected the kernel gaussian for DPM"):
        draw(trained, tmp_path / "samples", 1, SampleOptions())
    words = ("sampler={name: ancestral, steps: 2}",)
    draw(trained, tmp_path / "samples", 1, SampleOptions(words))
    with pytest.raises(UsageError, match=r"kernel.classes: expected 2 for bits, got 3"):
        build_task(tiny(root, tmp_path / "no", latent, DISCRETE, "kernel.classes=3"))
    with pytest.raises(UsageError, match="expected a space of bits for discrete, got voxel"):
        build_task(tiny(root, tmp_path / "no", DISCRETE))
    with pytest.raises(UsageError, match="expected gaussian for the recipe local_noise, got disc"):
        build_task(tiny(root, tmp_path / "no", latent, DISCRETE, "recipe=local_noise"))
