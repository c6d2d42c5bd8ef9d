"""Conditioners: what each computes, once per volume, and its cost; contracts hold the rest."""

import math

import pytest
import torch
import torch.nn.functional as F
from tiny_runs import load_run, write_data

from volumediff.batch import Batch
from volumediff.condition import Condition
from volumediff.conditioners._frequency_filter import FrequencyFilter
from volumediff.conditioners.spectrum import _Exchange
from volumediff.errors import UsageError
from volumediff.kernels.gaussian import Gaussian
from volumediff.losses.anchor import Anchor
from volumediff.losses.boundary import Boundary
from volumediff.losses.dice import Dice, soft_dice
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
from volumediff.segmentation.method_files import load_segmenter
from volumediff.settings.run_config import load_run_config
from volumediff.spaces.voxel import Voxel
from volumediff.tasks import build_task
from volumediff.training.loop import train

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


def test_frequencies_are_periodic():
    """-1/16 lies between 7/8 and 1 = 0 of a grid of eighths."""
    made, n = response(8), 16
    d, h, w = torch.meshgrid(*(torch.arange(n, dtype=torch.float64),) * 3, indexing="ij")
    wave = torch.cos(2 * math.pi * (-d + 2 * h + 2 * w) / 16).expand(1, 2, n, n, n)
    gain = 2 * torch.fft.rfftn(made(wave), dim=(2, 3, 4))[0, :, -1, 2, 2] / n**3
    weight = torch.complex(made.real, made.imaginary)[:, :, 1, 1]
    expected = (weight[:, 7] + weight[:, 0]) / 2
    torch.testing.assert_close(gain.detach(), expected.detach(), rtol=0, atol=1e-12)


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


# --- anchor: MedSegDiff-V2's U-SA --------------------------------------------------------------


def test_anchor_gates_the_first_level():
    """h + h σ(W max(g * f, f)), with g a Gaussian of its own width for every feature."""
    network = unet("anchor")
    _, condition = scene((7, 6, 5))
    part = network.conditioner
    with torch.no_grad():
        f = part.image(condition.image)
        blurred = torch.zeros_like(f)
        for c, sigma in enumerate(part.gate.log_sigma.exp().tolist()):
            blurred[:, c] = gaussian(f[:, c], sigma)
        mixed = F.conv3d(torch.maximum(blurred, f), part.gate.mix.weight, part.gate.mix.bias)
        gate, x0 = network.prepare(condition).prepared
        torch.testing.assert_close(gate, mixed.sigmoid(), rtol=0, atol=1e-12)
        expected = F.conv3d(f, part.head.weight, part.head.bias)
        torch.testing.assert_close(x0, expected, rtol=0, atol=1e-12)
        h = draw(2, 4, 7, 6, 5)
        found, _ = part(h, 0, (gate, x0), draw(2, 4))
    torch.testing.assert_close(found, h + h * gate, rtol=0, atol=1e-12)


def gaussian(x, sigma, radius=3):
    """A truncated Gaussian of unit sum over the last three axes, voxels beyond the volume 0."""
    steps = range(-radius, radius + 1)
    g = [math.exp(-0.5 * (i / sigma) ** 2) for i in steps]
    for axis in (1, 2, 3):
        moved = torch.zeros_like(x)
        for i, weight in zip(steps, g, strict=True):
            n = x.shape[axis]
            at = [j for j in range(n) if 0 <= j + i < n]
            source = x.index_select(axis, torch.tensor([j + i for j in at], dtype=torch.int64))
            moved.index_add_(axis, torch.tensor(at, dtype=torch.int64), source * weight / sum(g))
        x = moved
    return x


def label_model(network, *losses):
    recipe = LabelDiffusion(labels=(1, 2))
    return Model(Voxel(), Gaussian(Cosine()), network, recipe=recipe, losses=losses)


def label_batch():
    label = torch.zeros(2, 2, 6, 5, 4)
    label[0, 0, 1:4, 2:4, 1:3], label[1, 1, 3:, :3, 1:] = 1, 1
    return Batch(2 * label - 1, (1, 2), images=(draw(2, 1, 6, 5, 4, seed=1).float(),))


def test_the_loss_of_the_anchor_is_that_of_the_image_branch_alone():
    network = unet("anchor").float()
    batch = label_batch()
    plain = label_model(network).loss(batch)
    told = label_model(network).prepared(Condition(image=batch.images[0]))
    x0 = network.conditioner.anchor(told.prepared)
    squared = label_model(network, Anchor(weight=10.0)).loss(batch)
    expected = 10 * (x0 - batch.x).square().flatten(1).mean(1)
    torch.testing.assert_close(squared - plain, expected, rtol=1e-4, atol=1e-4)
    overlap = label_model(network, Anchor(terms=(Dice(weight=2.0),))).loss(batch)
    p, m = (x0 + 1) / 2, (batch.x + 1) / 2
    expected = 2 * (1 - soft_dice(p, m, smooth=50.0).mean(1))
    torch.testing.assert_close(overlap - plain, expected, rtol=1e-4, atol=1e-4)


def test_the_head_and_its_loss_come_together():
    run = small_run("anchor", "losses=[]")
    with pytest.raises(UsageError, match=r"losses: expected anchor"):
        build_task(run)
    run = small_run("pyramid", "losses=[{name: anchor}]")
    with pytest.raises(UsageError, match="whose image branch predicts the clean state"):
        build_task(run)
    build_task(small_run({"name": "anchor", "head": False}))
    with pytest.raises(UsageError, match="at most one that predicts the clean state, got 2"):
        UNet(2, 2, conditioner={"name": "chain", "parts": ["anchor", "anchor"]}, **SMALL)
    with pytest.raises(ValueError, match="losses of the predicted clean state alone"):
        Anchor(terms=(Boundary(),))


# --- spectrum: an interpretation of MedSegDiff-V2's SS-Former ----------------------------------


def exchange(plane=False, queried=False):
    return filled(_Exchange(4, 3, plane=plane, queried=queried), std=0.5)


def test_without_its_filter_the_exchange_is_linear_attention():
    """With S = 1, (1/n) q kᵀ v / sqrt(c) of voxels, by Parseval's theorem."""
    made = exchange()
    with torch.no_grad():
        for part in (made.rows, made.columns):
            part.last.weight.zero_()
            part.last.bias.fill_(10.0)  # <a, b> = 1600: S = 1
        x, y, e = draw(2, 4, 3, 5, 4), draw(2, 4, 3, 5, 4, seed=1), draw(2, 3, seed=2)
        found = made(x, y, e)
        tokens = [a.flatten(2).mT for a in (x, y)]
        normed = F.layer_norm(tokens[1], (4,), made.norm.weight, made.norm.bias)
        q, k, v = made.query(tokens[0]), made.key(normed), made.value(normed)
        told = tokens[0] + made.out(q @ (k.mT @ v) / 60 / 2)
        told = told + made.outer(F.silu(made.inner(told)))
    torch.testing.assert_close(found.flatten(2).mT, told, rtol=0, atol=1e-10)


def test_the_exchange_is_the_sum_over_pairs_of_frequencies(monkeypatch):
    made, x, y, e = exchange(), draw(1, 4, 2, 3, 4), draw(1, 4, 2, 3, 4, seed=1), draw(1, 3)
    q, k, v = (draw(1, 2, 3, 4, 4, seed=i) for i in (3, 4, 5))
    with torch.no_grad():
        every = [
            [math.cos(2 * math.pi * i / n) for i, n in zip(at, (2, 3, 4), strict=True)]
            for at in torch.cartesian_prod(*(torch.arange(n) for n in (2, 3, 4))).tolist()
        ]
        f = torch.tensor(every, dtype=torch.float64)
        s = torch.sigmoid(made.rows(f, e) @ made.columns(f, e).mT)
        fq, fk, fv = (
            torch.fft.fftn(a, dim=(1, 2, 3), norm="ortho").flatten(1, 3) for a in (q, k, v)
        )
        spectrum = ((s * (fq @ fk.mH)) @ fv / 24 / 2).unflatten(1, (2, 3, 4))
        expected = torch.fft.ifftn(spectrum, dim=(1, 2, 3), norm="ortho")
        assert expected.imag.abs().max() < 1e-12  # S is even: the result is real
        found = made._attended(q, k, v, e)
        torch.testing.assert_close(found, expected.real, rtol=0, atol=1e-10)
        # in parts, and of a tiled volume
        whole = made(x, y, e)
        monkeypatch.setattr("volumediff.conditioners.spectrum.ROWS", 5)
        torch.testing.assert_close(made(x, y, e), whole, rtol=0, atol=1e-12)
        tiled = made(x.tile(1, 1, 2, 1, 3), y.tile(1, 1, 2, 1, 3), e)
        torch.testing.assert_close(tiled, whole.tile(1, 1, 2, 1, 3), rtol=0, atol=1e-10)


# --- dual: DermoSegDiff ------------------------------------------------------------------------


def test_dual_starts_without_a_say_and_its_branch_sees_state_and_time():
    fresh = UNet(2, 2, conditioner="dual", **SMALL).double()
    _, condition = scene()
    h, e = draw(2, 4, 6, 5, 4), draw(2, fresh.embedding.width)
    with torch.no_grad():
        told, (g,) = fresh.conditioner(h, 0, fresh.prepare(condition).prepared, e)
        torch.testing.assert_close(told, h)
        network = unet("dual")
        prepared = network.prepare(condition).prepared
        _, (g,) = network.conditioner(h, 0, prepared, e)
        _, (of_state,) = network.conditioner(h + 1, 0, prepared, e)
        _, (of_time,) = network.conditioner(h, 0, prepared, e + 1)
    assert (g - of_state).abs().max() > 1e-6
    assert (g - of_time).abs().max() > 1e-6
    assert g.shape == (2, 4, 3, 3, 2)


# --- once per volume ---------------------------------------------------------------------------

WAYS = ["concat", RRDB, "pyramid", {"name": "frequency", "grid": 4}, "anchor", "spectrum", "dual"]


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
        ({"name": "dual", "share": 0.0}, "expected a share"),
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


def small_run(conditioner, *words, **memory):
    words = [
        *words,
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


# --- methods -----------------------------------------------------------------------------------

METHODS = ["segdiff", "diff_unet", "medsegdiff", "medsegdiff_v2", "dermosegdiff"]
DEFAULTS = {
    "segdiff": (100, 9, "add"),
    "diff_unet": (10, 4, "chain"),
    "medsegdiff": (50, 5, "chain"),
    "medsegdiff_v2": (50, 10, "chain"),
    "dermosegdiff": (250, 5, "dual"),
}


@pytest.mark.parametrize("method", METHODS)
def test_methods_have_the_defaults_of_their_papers(method):
    steps, samples, conditioner = DEFAULTS[method]
    segmenter = load_segmenter(method)
    assert (segmenter.sampler.steps, segmenter.samples) == (steps, samples)
    run = load_run_config("patch_64", [f"method={method}"])
    assert run.network["conditioner"]["name"] == conditioner
    assert run.network["widths"] == load_run_config("patch_64").network["widths"]


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("labelled"), cases=4, labels=True)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_and_segments_with_one_image_branch_per_volume(method, labelled, tmp_path):
    words = [
        f"method={method}",
        f"data.root={labelled}",
        f"output={tmp_path / 'run'}",
        "data.preprocessing.shape=[8,8,8]",
        "data.split={validation: 0.25, calibration: 0.0}",
        "network.widths=[4,8]",
        "network.groups=2",
        "crop=null",
        "memory.dtype=float32",
        "optim={lr: 1e-3, steps: 2, warmup: 1, batch_size: 2, ema: 0.9}",
        "validation={every: 2, volumes: 1}",
    ]
    if method == "segdiff":
        words.append("network.conditioner={name: add, blocks: 1, features: 4, growth: 2}")
    train(load_run_config("patch_64", words))
    model = load_run(tmp_path / "run")[1].eval()
    calls = counted(model.network)
    segmenter = load_segmenter(method, ["samples=3", "sampler.steps=2", "batch=2"])
    segmenter.check(model)
    x = draw(1, 1, 8, 8, 8).float()
    found = segmenter.segment(model, x, foreground=x > -9, spacing_mm=(3.0, 3.0, 3.0), key=1)
    assert calls == [1]
    assert found.probabilities.isfinite().all()
    assert found.probabilities.shape == x.shape
    words = ["predictor=anchor", "sampler=null", "samples=1", "fusion=mean"]
    alone = load_segmenter(method, words)
    if not method.startswith("medsegdiff"):
        with pytest.raises(ValueError, match="whose image branch predicts the labels"):
            alone.check(model)
        return
    # The denoiser does not run, and the answer is that of the head.
    model.network.forward = None
    alone.check(model)
    found = alone.segment(model, x, foreground=x > -9, spacing_mm=(3.0, 3.0, 3.0), key=1)
    with torch.no_grad():
        told = model.prepared(Condition(image=x))
    z = model.network.conditioner.anchor(told.prepared)
    torch.testing.assert_close(found.probabilities, ((z + 1) / 2).clamp(0, 1))
