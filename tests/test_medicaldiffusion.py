"""Medical Diffusion's checkpoints become runs that compute what the published formulas compute."""

import itertools

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from medicaldiffusion_reference import decode, encode, latents, published, unet
from tiny_runs import load_run

from volumediff import config
from volumediff.autoencoders.medicaldiffusion_vq import MedicalDiffusionVQ
from volumediff.errors import DataError
from volumediff.importers._base import ForeignCheckpoint, checked
from volumediff.importers._published import Published
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.memory.slab_convolution import TransposedConvolution
from volumediff.memory.slabs import EdgePad
from volumediff.networks._edges import EdgeConv, EdgeUp, conv_transposed, edge_padded
from volumediff.networks.medicaldiffusion_unet import MedicalDiffusionUNet
from volumediff.settings.run_config import parse
from volumediff.tasks import build_task
from volumediff.training.imported import import_run

CODER, UNET = "medicaldiffusion_autoencoder", "medicaldiffusion_unet"
GROUPS = "autoencoder.groups=4"
VOXELS = ("space=voxel", "data.channels=[a,b,c]")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def theirs(x):
    """A volume (R, A, slice) with the slices first."""
    return x.permute(0, 1, 4, 2, 3)


def ours(x):
    """And back."""
    return x.permute(0, 1, 3, 4, 2)


def imported(kind, state, *words, said=None):
    source, importer = ForeignCheckpoint(state, published=said), config.build("importer", kind)
    task = build_task(parse(config.overridden(importer.config(source), words)))
    shapes = {name: tuple(t.shape) for name, t in task.state().items()}
    if "space.shift" in shapes:
        shapes |= dict.fromkeys(("space.shift", "space.scale"), (task.module.network.in_channels,))
    task.module.double()
    task.load(checked(importer, source, shapes))
    return task.module.eval()


def close(a, b, atol=1e-10):
    torch.testing.assert_close(a, b, rtol=0, atol=atol)


# --- against the reference ----------------------------------------------------------------------


@pytest.mark.parametrize("slab", [None, 2])
@pytest.mark.parametrize("downsample", [(4, 4, 4), (2, 4, 4), (1, 4, 2)])
def test_the_autoencoder_is_the_published_one(downsample, slab):
    """Along (slice, R, A) there, and so along (R, A, slice) here."""
    state = published()
    s, r, a = downsample
    model = imported(CODER, state, GROUPS, f"autoencoder.downsample=[{r},{a},{s}]")
    MemoryPolicy(slab=slab).apply(model)
    x = normal(2, 1, 8, 8, 12)
    expected = encode(state, theirs(x), downsample, groups=4)
    z = model.encode(x)
    close(theirs(z), expected)
    expected = decode(state, expected, downsample, groups=4)
    close(theirs(model.decode(z)), expected)
    assert expected.std() > 0.1
    assert model.codec["codebook"].use.sum() == pytest.approx(1)


@pytest.mark.parametrize("k", [0, 13, 29])
@pytest.mark.parametrize("policy", [{}, {"slab": 3}])
def test_the_diffusion_model_is_the_published_one(k, policy):
    state = published()
    model = imported(UNET, state, *VOXELS)
    MemoryPolicy(**policy).apply(model.network)
    # 18 slices: distances beyond 16 share a bucket
    z = normal(2, 3, 6, 4, 18)
    t = torch.tensor([(k + 1) / 30] * 2, dtype=torch.float64)
    expected = unet(state, theirs(z), k)
    close(theirs(model.network(z, t)), expected)
    assert expected.std() > 0.1
    alpha = state["ema.alphas_cumprod"][k]
    x0 = (theirs(z) - (1 - alpha).sqrt() * expected) / alpha.sqrt()
    model.dtype = torch.float64
    found = theirs(model.denoise(z, t).x0)
    torch.testing.assert_close(found, x0, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    "policy", [{"slab": 2}, {"checkpoint": True}, {"slab": 3, "offload": True}]
)
def test_gradients_are_those_of_the_plain_network(policy):
    network = MedicalDiffusionUNet(2, 2, width=8, multiples=(1, 2), heads=2, head_size=8).double()
    coder = MedicalDiffusionVQ(1, width=4, groups=4, codes=8, downsample=(4, 2, 1)).double()
    for module in (network, coder):
        generator = torch.Generator().manual_seed(1)
        for parameter in module.parameters():
            parameter.data = 0.3 * torch.randn(
                parameter.shape, generator=generator, dtype=torch.float64
            )
    x, t = normal(2, 2, 8, 6, 5), torch.tensor([0.2, 0.9]).double()
    v = normal(1, 1, 12, 8, 4)

    def run():
        for module in (network, coder):
            module.zero_grad()
        y = network(x, t)
        w = coder.codec["decoder"](coder.encode(v))
        (y.square().sum() + w.square().sum()).backward()
        parameters = [*network.parameters(), *coder.codec["encoder"].parameters()]
        parameters += coder.codec["decoder"].parameters()
        return y.detach(), w.detach(), [p.grad.clone() for p in parameters]

    y, w, expected = run()
    for module in (network, coder):
        MemoryPolicy(**policy).apply(module)
    found_y, found_w, gradients = run()
    close(found_y, y)
    close(found_w, w)
    most = max(float(g.abs().max()) for g in expected)
    for a, b in zip(gradients, expected, strict=True):
        close(a, b, 1e-9 * most)


def test_edges_are_repeated():
    x = normal(2, 3, 3, 4, 2)
    found = edge_padded(x, (1, 0, 2), (2, 1, 0))
    assert torch.equal(found, F.pad(x, (2, 0, 0, 1, 1, 2), mode="replicate"))
    for stride in ((2, 1, 2), (1, 1, 1), (2, 2, 2)):
        y = EdgeConv(3, 2, kernel=(4, 4, 4), stride=stride).double()(normal(1, 3, 4, 6, 8))
        assert y.shape[2:] == tuple(n // s for n, s in zip((4, 6, 8), stride, strict=True))
        y = EdgeUp(3, 2, factor=stride).double()(normal(1, 3, 4, 6, 8))
        assert y.shape[2:] == tuple(n * s for n, s in zip((4, 6, 8), stride, strict=True))


def test_every_range_of_planes_is_cut_from_the_whole():
    x, weight, bias = normal(1, 2, 3, 2, 2), normal(2, 1, 4, 4, 4), normal(1)
    padded = edge_padded(x, (2, 1, 0), (2, 0, 1))
    enlarged = conv_transposed(x, weight, bias, stride=(2, 2, 1), padding=(1, 1, 0))
    for operation, small, whole in (
        (EdgePad((2, 1, 0), (2, 0, 1), 3), (), padded),
        (TransposedConvolution((2, 2, 1), (1, 1, 0), (weight, bias)), (weight, bias), enlarged),
    ):
        depth = whole.shape[2]
        for lo, hi in itertools.combinations(range(depth + 1), 2):
            ((first, last),) = operation.needs((lo, hi), [3])
            found = operation((lo, hi), [x[:, :, first:last]], small)
            close(found, whole[:, :, lo:hi])


# --- runs ---------------------------------------------------------------------------------------


def test_one_file_becomes_two_runs(tmp_path):
    state = {name: value.float() for name, value in published().items()}
    file = tmp_path / "model-1.safetensors"
    safetensors.torch.save_file(state, file)
    coder = import_run(CODER, file, tmp_path / "coder", overrides=[GROUPS])
    run = import_run(UNET, file, tmp_path / "run", overrides=[f"space.autoencoder={coder}"])
    config_, model = load_run(run)
    assert config_.kernel["schedule"]["levels"] == 30
    x = normal(1, 1, 8, 8, 8).float()
    expected = latents(state, encode(state, theirs(x), (4, 4, 4), groups=4))
    z = model.encode(x)
    close(theirs(z), expected, 1e-5)
    expected = decode(state, encode(state, theirs(x), (4, 4, 4), groups=4), (4, 4, 4), groups=4)
    close(theirs(model.decode(z, (8, 8, 8))), expected, 1e-4)


def test_settings_beside_the_weights_say_the_steps_of_the_grid():
    state = published()
    tree = {"n_hiddens": 4, "downsample": [1, 4, 2], "num_groups": 4, "padding_type": "replicate"}
    said = Published({"config/model/vq_gan_3d.yaml": tree}, licence=None)
    model = imported(CODER, state, said=said)
    assert model.stride == (4, 2, 1)
    # of another model: width 240
    other = Published({"vq_gan_3d.yaml": tree | {"n_hiddens": 240}})
    assert imported(CODER, state, GROUPS, said=other).stride == (4, 4, 4)
    source = ForeignCheckpoint(state)
    origin = config.build("importer", UNET).origin(source)
    assert origin.licence is None
    zeros = Published({"vq_gan_3d.yaml": tree | {"padding_type": "zeros"}})
    with pytest.raises(DataError, match="pad by zeros, expected replicate"):
        imported(CODER, state, said=zeros)


# --- what does not fit --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (UNET, "denoise_fn.downs.1.3.fn.norm.gamma"),
        (UNET, "denoise_fn.ups.0.4.bias"),
        (UNET, "denoise_fn.final_conv.1.weight"),
        (UNET, "vqgan.codebook.embeddings"),
        (CODER, "vqgan.pre_vq_conv.conv.bias"),
        (CODER, "vqgan.decoder.conv_blocks.1.res2.norm2.weight"),
    ],
)
def test_every_tensor_is_needed(kind, name):
    state = published()
    del state[f"ema.{name}"]
    words = (GROUPS,) if kind == CODER else VOXELS
    with pytest.raises(DataError, match=f"has no tensor ema.{name}"):
        imported(kind, state, *words)


def test_surplus_tensors_and_other_schedules_are_refused():
    state = published()
    for kind, words in ((UNET, VOXELS), (CODER, (GROUPS,))):
        beside = "denoise_fn.null_cond_emb" if kind == UNET else "vqgan.encoder.more"
        with pytest.raises(DataError, match=rf"ema.{beside} would be left over"):
            imported(kind, {**state, f"ema.{beside}": torch.zeros(1, 3)}, *words)
    name = "ema.alphas_cumprod"
    with pytest.raises(DataError, match="is no cosine schedule of 30 steps"):
        imported(UNET, {**state, name: state[name] * 0.9}, *VOXELS)
    name = "ema.denoise_fn.init_temporal_attn.fn.fn.fn.rotary_emb.freqs"
    with pytest.raises(DataError, match="other frequencies than published ones"):
        imported(UNET, {**state, name: state[name] * 2}, *VOXELS)
    for kind in (UNET, CODER):
        with pytest.raises(DataError, match="is it a checkpoint of this kind"):
            imported(kind, {"conv.weight": torch.zeros(2, 2)})


def test_wrong_arguments():
    for options, words in (
        ({"width": 3}, "an even width from 4 on .* got 3"),
        ({"multiples": ()}, "at least one level"),
        ({"groups": 5}, "groups must divide all widths .* got 5"),
        ({"head_size": 3}, "heads of an even size, got 8 of 3"),
    ):
        with torch.device("meta"), pytest.raises(ValueError, match=words):
            MedicalDiffusionUNet(1, 1, **options)
    for options, words in (
        ({"downsample": (3, 4, 4)}, "powers of two, .* got \\(3, 4, 4\\)"),
        ({"downsample": (1, 1, 1)}, "one of them above 1"),
        ({"groups": 5}, "groups must divide twice the width 16, got 5"),
    ):
        with torch.device("meta"), pytest.raises(ValueError, match=words):
            MedicalDiffusionVQ(1, **options)
