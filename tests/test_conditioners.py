"""Conditioners: what each computes, once per volume, and its cost; contracts hold the rest."""

import math

import pytest
import torch
import torch.nn.functional as F

from volumediff.condition import Condition
from volumediff.conditioners._frequency_filter import FrequencyFilter
from volumediff.errors import UsageError
from volumediff.kernels.gaussian import Gaussian
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.model import Model
from volumediff.networks.guided import Guided
from volumediff.networks.monai_unet import MonaiUNet
from volumediff.networks.pseudo3d import Pseudo3D, inflate
from volumediff.networks.unet import UNet
from volumediff.planning.planner import trace
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.schedules.cosine import Cosine
from volumediff.settings.run_config import load_run_config
from volumediff.spaces.voxel import Voxel

T = torch.tensor([0.3, 0.8])
SMALL = {"widths": (4, 8), "blocks": 1, "groups": 2, "image_channels": 1}
RRDB = {"name": "add", "blocks": 2, "features": 4, "growth": 2}


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(module, seed=0, std=0.2):
    torch.manual_seed(seed)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=std)
    return module.double()


def unet(conditioner, **more):
    return filled(UNet(2, 2, conditioner=conditioner, **{**SMALL, **more}))


def scene(size=(6, 5, 4), channels=1):
    return draw(2, 2, *size), Condition(image=draw(2, channels, *size, seed=1))


# --- concat: as without conditioners -----------------------------------------------------------


@pytest.mark.parametrize("kind", [UNet, Pseudo3D, Guided, MonaiUNet])
def test_concat_is_the_default_and_has_no_weights(kind):
    named = kind(2, 2, **SMALL).state_dict()
    assert not any("conditioner" in name for name in named)
    assert named.keys() == kind(2, 2, conditioner="concat", **SMALL).state_dict().keys()
    wide = kind(3, 2, **{**SMALL, "image_channels": 0})
    assert {n: t.shape for n, t in named.items()} == {
        n: t.shape for n, t in wide.state_dict().items()
    }


def test_concat_is_the_network_on_more_channels_bit_for_bit():
    network = unet("concat", coordinates=True)
    z, condition = scene()
    where = draw(2, 3, 6, 5, 4, seed=2)
    wide = UNet(6, 2, **{**SMALL, "image_channels": 0}).double()
    wide.load_state_dict(network.state_dict())
    told = condition.replace(coordinates=where)
    expected = wide(torch.cat((z, condition.image, where), dim=1), T)
    assert torch.equal(network(z, T, told), expected)
    assert torch.equal(network(z, T, network.prepare(told)), expected)


# --- add: SegDiff ------------------------------------------------------------------------------


def rrdb(weights, image, blocks):
    """The residual-in-residual dense network, written out."""

    def conv(name, x):
        return F.conv3d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def bent(x):
        return torch.where(x >= 0, x, 0.2 * x)

    first = conv("first", image)
    h = first
    for i in range(blocks):
        before = h
        for j in range(3):
            name, xs = f"trunk.{i}.dense.{j}.convs", [h]
            for k in range(4):
                xs.append(bent(conv(f"{name}.{k}", torch.cat(xs, dim=1))))
            h = h + 0.2 * conv(f"{name}.4", torch.cat(xs, dim=1))
        h = before + 0.2 * h
    h = first + conv("end", h)
    return conv("last", bent(conv("high", h)))


def test_add_is_the_rrdb_added_after_the_stem():
    network = unet(RRDB)
    z, condition = scene()
    g = rrdb(network.conditioner.encoder.state_dict(), condition.image, 2)
    torch.testing.assert_close(network.prepare(condition).prepared[0], g, rtol=0, atol=1e-12)
    seen = []
    network.hourglass.encoder[0][0].register_forward_pre_hook(lambda _, given: seen.append(given))
    network(z, T, condition)
    torch.testing.assert_close(seen[0][0], network.hourglass.stem(z) + g, rtol=0, atol=1e-12)


def test_add_has_the_sizes_of_the_paper():
    network = UNet(
        1, 1, image_channels=1, widths=(32, 64), conditioner={"name": "add", "blocks": 12}
    )
    dense = sum(27 * (64 + 32 * i) * 32 + 32 for i in range(4)) + 27 * 192 * 64 + 64
    ends = (27 * 1 * 64 + 64) + 2 * (27 * 64 * 64 + 64) + (27 * 64 * 32 + 32)
    found = sum(p.numel() for p in network.conditioner.parameters())
    assert found == 12 * 3 * dense + ends


# --- frequency: MedSegDiff's filter (T16) ------------------------------------------------------


def response(size, filled=True, seed=3):
    torch.manual_seed(seed)
    made = FrequencyFilter(2, grid=8).double()
    if filled:
        for p in made.parameters():
            torch.nn.init.normal_(p)
    return made


def test_filter_starts_as_the_identity():
    for size in ((8, 8, 8), (5, 7, 9), (1, 1, 1), (16, 3, 2)):
        x = draw(2, 3, *size)
        y = FrequencyFilter(3)(x)
        torch.testing.assert_close(y, x, rtol=0, atol=1e-12)
        torch.testing.assert_close(FrequencyFilter(3)(x.float()), x.float(), rtol=0, atol=1e-6)


def test_filter_commutes_with_circular_shifts():
    made, x = response(8), draw(1, 2, 7, 6, 5)
    moved = made(x.roll((2, -1, 3), (2, 3, 4)))
    torch.testing.assert_close(moved, made(x).roll((2, -1, 3), (2, 3, 4)), rtol=0, atol=1e-12)
    assert (made(x) - x).abs().max() > 0.1


def test_filter_is_the_same_function_of_frequency_on_every_grid():
    """A tiled volume gives the tiled result; a wave gains the same factor on 16 and 32 voxels."""
    made, x = response(8), draw(1, 2, 6, 4, 10)
    tiled = made(x.tile(1, 1, 2, 3, 2))
    torch.testing.assert_close(tiled, made(x).tile(1, 1, 2, 3, 2), rtol=0, atol=1e-12)
    gains = []
    for n in (16, 32):
        d, h, w = torch.meshgrid(*(torch.arange(n, dtype=torch.float64),) * 3, indexing="ij")
        wave = torch.cos(2 * math.pi * (3 * d + h + 2 * w) / 16).expand(1, 2, n, n, n)
        spectrum = torch.fft.rfftn(made(wave), dim=(2, 3, 4)) / n**3
        k = n // 16
        gains.append(2 * spectrum[0, :, 3 * k, k, 2 * k])
    torch.testing.assert_close(gains[0], gains[1], rtol=0, atol=1e-13)
    # 3/16, 1/16 and 2/16 on a grid of eighths: midway between its points, and on one
    weight = torch.complex(made.real, made.imaginary)
    between = weight[:, 1:3, 0:2, 1].mean(dim=(1, 2))
    torch.testing.assert_close(gains[0], between.detach(), rtol=0, atol=1e-12)


def test_filter_within_slices_keeps_them_apart():
    torch.manual_seed(0)
    made = filled(FrequencyFilter(2, grid=4, plane=True), std=1.0)
    x = draw(1, 2, 3, 6, 5)
    alone = torch.cat([made(x[:, :, i : i + 1]) for i in range(3)], dim=2)
    torch.testing.assert_close(made(x), alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_filter_is_safe_in_half_precision(dtype):
    """The sum of a volume, its lowest frequency, is beyond the largest number of float16."""
    x = (100 + draw(1, 2, 16, 16, 16)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = FrequencyFilter(2)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), x.float(), rtol=1e-2, atol=0)


def test_filter_of_many_channels_is_that_of_each():
    made = filled(FrequencyFilter(20, grid=4), std=1.0)
    x = draw(1, 20, 4, 4, 4)
    one = FrequencyFilter(1, grid=4).double()
    for channel in (0, 17):
        one.load_state_dict({n: t[channel : channel + 1] for n, t in made.state_dict().items()})
        part = x[:, channel : channel + 1]
        torch.testing.assert_close(
            made(x)[:, channel : channel + 1], one(part), rtol=0, atol=1e-12
        )


# --- once per volume ---------------------------------------------------------------------------

WAYS = ["concat", RRDB, "pyramid", {"name": "frequency", "grid": 4}]


def counted(network):
    """Calls of the image branch."""
    calls = []
    inner = network.conditioner.prepare
    network.conditioner.prepare = lambda image: calls.append(len(image)) or inner(image)
    return calls


@pytest.mark.parametrize("conditioner", WAYS, ids=str)
def test_a_chain_prepares_the_image_once(conditioner):
    network = UNet(1, 1, conditioner=conditioner, **SMALL).eval()
    model = Model(Voxel(), Gaussian(Cosine()), network, recipe=LabelDiffusion())
    calls = counted(network)
    condition = Condition(image=draw(1, 1, 6, 5, 4).float())
    sampler = DPMSolverPP(4)

    def sample(told):
        noise = model.noise([1, 2], (1, 6, 5, 4))
        with torch.no_grad():
            return sampler.sample(
                model.denoise,
                model.kernel,
                model.kernel.prior(noise(-1)),
                sampler.times(model.kernel.schedule),
                condition=told.map(lambda v: v.expand(2, *v.shape[1:])),
                noise=noise,
            )

    once = sample(model.prepared(condition))
    assert calls == [1]
    torch.testing.assert_close(sample(condition), once)
    assert len(calls) > 2


def test_another_image_is_prepared_anew():
    network = unet(RRDB)
    z, condition = scene()
    told = network.prepare(condition)
    other = told.replace(image=condition.image + 1)
    assert other.prepared is None
    assert told.replace(scalars=None).prepared is told.prepared
    assert (network(z, T, other) - network(z, T, told)).abs().max() > 1e-6


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Guided, MonaiUNet])
def test_networks_of_published_checkpoints_refuse_with_the_reason(kind):
    with pytest.raises(ValueError, match=r"expected concat for .* published checkpoints, got add"):
        kind(2, 2, conditioner="add", **SMALL)


def test_wrong_arguments_are_named():
    for spec, words in (
        ("ad", "choose from"),
        ({"name": "add", "block": 3}, "Did you mean 'blocks'"),
        ({"name": "add", "blocks": 0}, "at least 1, got 0"),
        ({"name": "frequency", "grid": 5}, "expected an even number"),
        ({"name": "frequency", "levels": [2]}, "levels of the network"),
        ({"name": "chain", "parts": []}, "at least one conditioner"),
        ({"name": "chain", "parts": ["concat", "nothing"]}, r"parts\[1\]|conditioner.name"),
    ):
        with pytest.raises(UsageError, match=words):
            UNet(2, 2, conditioner=spec, **SMALL)
    with pytest.raises(UsageError, match="expected a network with an image condition"):
        UNet(2, 2, widths=(4,), conditioner="pyramid")


# --- pipelines, memory -------------------------------------------------------------------------


def test_the_pseudo_3d_network_inflates_with_its_conditioner():
    spec = {
        "name": "chain",
        "parts": ["concat", "pyramid", RRDB, {"name": "frequency", "grid": 4}],
    }
    options = {**SMALL, "conditioner": spec}
    flat = filled(Pseudo3D(2, 2, through_plane=False, **options))
    stack = Pseudo3D(2, 2, **options).double()
    stack.load_state_dict(inflate(flat.state_dict()))
    z, condition = scene((3, 6, 5))
    slices = [slice(i, i + 1) for i in range(3)]
    alone = [flat(z[:, :, s], T, condition.map(lambda v, s=s: v[:, :, s])) for s in slices]
    torch.testing.assert_close(stack(z, T, condition), torch.cat(alone, dim=2), rtol=0, atol=1e-12)


def small_run(conditioner, **memory):
    words = [
        "network.widths=[8,16]",
        "recipe={name: label_diffusion, labels: [1]}",
        "data.preprocessing.shape=[32,32,32]",
        "crop=null",
        "memory.dtype=float32",
        "validation.best=null",
        "validation.previews=0",
    ]
    run = load_run_config("patch_64", words)
    network = {**run.network, "conditioner": conditioner}
    policy = MemoryPolicy(**{**vars(run.memory), **memory})
    return run.model_copy(update={"network": network, "memory": policy})


def test_the_plan_counts_the_image_branch():
    """The dense blocks at full resolution are the peak, and slabs cut them."""
    wide = {"name": "add", "blocks": 1}
    plain, deep = (trace(small_run(c), mode="infer") for c in ("concat", wide))
    full = 4 * 32**3 * 192  # bytes of the input of a dense block's last convolution
    assert deep.stage == "prepare"
    assert deep.stages["prepare"].device > plain.stages["encode"].device + full
    thin = trace(small_run(wide, slab=4), mode="infer")
    away = trace(small_run(wide, slab=4, offload=True), mode="infer")
    assert thin.stages["prepare"].device < 0.85 * deep.stages["prepare"].device
    assert away.stages["prepare"].device < 0.5 * deep.stages["prepare"].device
    free = small_run("frequency"), small_run("concat")
    filtered, without = (trace(run, mode="train").peak_gb for run in free)
    assert filtered > without
