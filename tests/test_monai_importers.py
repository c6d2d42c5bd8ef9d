"""Checkpoints of MONAI become runs, or are refused in one line."""

from functools import partial

import pytest
import safetensors.torch
import torch
from monai_networks import UNET, WORDS, autoencoder, imported, maisi_autoencoder, maisi_unet, unet
from tiny_runs import load_run

from volumediff import config
from volumediff.condition import Condition
from volumediff.errors import DataError, UsageError
from volumediff.importers._base import ForeignCheckpoint
from volumediff.importers._published import Published
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.samples.statistics import Statistics
from volumediff.training.imported import import_run

GROUPS = "autoencoder.groups=4"


def refused(kind, tensors, words, *overrides):
    """The one line that importing ends with, which has these words in it."""
    with pytest.raises((DataError, UsageError), match=words) as caught:
        imported(kind, tensors, *overrides)
    assert "\n" not in str(caught.value)


def test_two_checkpoints_become_a_latent_run(tmp_path):
    theirs, net = maisi_autoencoder(latent_channels=4), maisi_unet(include_spacing_input=True)
    for name, module in (("a", theirs), ("b", net)):
        state = {n: t.float() for n, t in module.state_dict().items()}
        if name == "b":
            state = {f"unet_state_dict.{n}": t for n, t in state.items()}
            state |= {"scale_factor": torch.tensor(1.25), "epoch": torch.tensor(7)}
        safetensors.torch.save_file(state, tmp_path / f"{name}.safetensors")
    file = tmp_path / "a.safetensors"
    coder = import_run("monai_autoencoder", file, tmp_path / "coder", overrides=[GROUPS])
    words = ["importer.head_size=4", "network.groups=4", f"space.autoencoder={coder}"]
    run = import_run("monai_unet", tmp_path / "b.safetensors", tmp_path / "run", overrides=words)
    saved, model = load_run(run)
    assert saved.recipe["scalars"] == ["spacing_0", "spacing_1", "spacing_2"]
    x = torch.randn(1, 1, 4, 8, 4, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # MAISI's volumes are in [0, 1]
        expected = theirs.float().encode((x + 1) / 2)[0]
        z = model.encode(x)
        torch.testing.assert_close(z, 1.25 * expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            model.decode(z, (4, 8, 4)), 2 * theirs.decode(expected) - 1, rtol=1e-4, atol=1e-4
        )
        # t = 0.5 is the step 499 of a thousand, and its square survives float32
        attributes = {"spacing_0": 1.0, "spacing_1": 2.0, "spacing_2": 0.5}
        scalars = Statistics.load(run).standardised(attributes)[None]
        y = model.network(z, torch.tensor([0.5]), Condition(scalars=scalars))
        steps, spacing = torch.tensor([499]), torch.tensor([[1.0, 2.0, 0.5]])
        expected = net.float()(z, steps, spacing_tensor=spacing)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_a_network_of_one_channel_diffuses_voxels():
    from monai.networks.nets import DiffusionModelUNet

    small = {"channels": (8,), "attention_levels": (False,), "num_res_blocks": 1}
    net = DiffusionModelUNet(3, 1, 1, norm_num_groups=4, num_head_channels=4, **small)
    model = imported(UNET, net.state_dict(), "network.groups=4")
    x = torch.linspace(-1, 1, 27).double().view(1, 1, 3, 3, 3)
    torch.testing.assert_close(model.encode(x), (x + 1) / 2)
    torch.testing.assert_close(model.decode((x + 1) / 2), x)


def test_names_from_before_monai_1_4():
    new = unet().state_dict()
    renamed = {"postconv": "conv", "attn.to_": "to_", "attn.out_proj": "proj_attn"}

    def old(name):
        for now, before in renamed.items():
            name = name.replace(now, before)
        return name

    state = {old(n): t for n, t in new.items()}
    assert len(set(state) - set(new)) == 34
    ours, same = imported(UNET, new, *WORDS), imported(UNET, state, *WORDS)
    assert all(torch.equal(t, same.state_dict()[n]) for n, t in ours.state_dict().items())
    crossed = unet(with_conditioning=True, cross_attention_dim=3).state_dict()
    renamed = {"postconv": "conv", ".out_proj.": ".to_out.0."}
    state = {old(name): tensor for name, tensor in crossed.items()}
    assert len(set(state) - set(crossed)) == 18
    ours, same = imported(UNET, crossed, *WORDS), imported(UNET, state, *WORDS)
    assert all(torch.equal(t, same.state_dict()[n]) for n, t in ours.state_dict().items())
    renamed = {"postconv": "conv", "attn.to_": "to_", "attn.out_proj": "proj_attn"}
    state = autoencoder(with_encoder_nonlocal_attn=True).state_dict()
    ours = imported("monai_autoencoder", state, GROUPS).state_dict()
    same = imported("monai_autoencoder", {old(n): t for n, t in state.items()}, GROUPS)
    assert all(torch.equal(t, same.state_dict()[n]) for n, t in ours.items())


def test_every_tensor_is_used_and_none_is_missing():
    for kind, make, words in (
        (UNET, unet, WORDS),
        (UNET, maisi_unet, WORDS),
        (UNET, partial(unet, with_conditioning=True, cross_attention_dim=3), WORDS),
        ("monai_autoencoder", autoencoder, (GROUPS,)),
        ("monai_autoencoder", maisi_autoencoder, (GROUPS,)),
    ):
        state = make().state_dict()
        refused(
            kind, {**state, "extra.weight": torch.zeros(3)}, "extra.weight would be left", *words
        )
        for name in list(state)[:: len(state) // 12]:
            less = {n: t for n, t in state.items() if n != name}
            refused(kind, less, ".", *words)
            refused(kind, {**state, name: torch.zeros(5)}, ".", *words)


@pytest.mark.parametrize("named", [True, False])
def test_what_is_not_supported_is_said(named):
    if named:
        crossed = {"with_conditioning": True, "cross_attention_dim": 3, "in_channels": 6}
        refused(UNET, unet(**crossed).state_dict(), "beside it the 3 numbers of its", *WORDS)
        refused("monai_unet", unet().state_dict(), "importer.head_size=N", *WORDS)
        refused(UNET, unet().state_dict(), "groups must divide", *WORDS, "network.groups=3")
        three = UNET | {"head_size": 3}
        refused(three, unet().state_dict(), "head_size 3 must divide the width 16", *WORDS)
        ends = {n: t for n, t in unet().state_dict().items() if n.startswith(("conv_in", "out"))}
        refused(UNET, ends, "no tensor down_blocks.0.resnets.0.norm1.weight", *WORDS)
        refused(UNET, autoencoder().state_dict(), "conv_in.conv.weight, got 0", *WORDS)
        return
    for options, words in (
        ({"use_convtranspose": True}, r"decoder's layers CR\?RNC .* no transposed"),
        ({"in_channels": 2}, "takes 2 channels and gives 1"),
    ):
        refused("monai_autoencoder", autoencoder(**options).state_dict(), words, GROUPS)
    attends = {"attention_levels": (False, True), "num_res_blocks": 2}
    state = autoencoder(**attends).state_dict()
    some = {n: t for n, t in state.items() if not n.startswith("encoder.blocks.6.")}
    refused("monai_autoencoder", some, "attention behind all blocks of a level", GROUPS)
    state = autoencoder().state_dict()
    refused("monai_autoencoder", state, r"groups must divide .* got 32")
    flat = {n: t[..., 0] if t.ndim == 5 else t for n, t in state.items()}
    refused("monai_autoencoder", flat, "expected 5 axes", GROUPS)


def test_networks_of_mirrored_arrays():
    """What ours gives of a volume is, mirrored, what theirs gives of the mirrored volume."""
    attends = {"resblock_updown": True, "with_conditioning": True, "cross_attention_dim": 3}
    theirs, x = unet(**attends), torch.randn(1, 4, 4, 6, 2).double()
    ours = imported({**UNET, "axes": "LAI"}, theirs.state_dict(), *WORDS).network
    c = torch.randn(1, 3).double()
    expected = theirs(x.flip(2, 4), torch.tensor([499]), context=c[:, None]).flip(2, 4)
    found = ours(x, torch.tensor([0.5]).double(), Condition(scalars=c))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    coder = autoencoder(channels=(8, 16, 16), attention_levels=(False,) * 3)
    kind = {"name": "monai_autoencoder", "axes": "LAI"}
    model = imported(kind, coder.state_dict(), GROUPS, "autoencoder.interval=[-1,1]")
    x = torch.randn(1, 1, 8, 4, 12).double()
    z, _ = coder.encode(x.flip(2, 4))
    torch.testing.assert_close(model.encode(x), z.flip(2, 4), rtol=0, atol=1e-10)
    y = coder.decode(z).flip(2, 4)
    torch.testing.assert_close(model.decode(model.encode(x)), y, rtol=0, atol=1e-10)
    MemoryPolicy(slab=2).apply(model)
    torch.testing.assert_close(model.encode(x), z.flip(2, 4), rtol=0, atol=1e-10)
    # a strided convolution of three voxels has no mirror image of three voxels
    strided = {**UNET, "axes": "LAS"}
    refused(strided, unet().state_dict(), "strided convolutions of arrays along LAS", *WORDS)


def test_what_the_brains_of_the_model_zoo_say_to_people_alone():
    metadata = {"task": "Brain image synthesis", "inputs": {"type": "tabular"}}
    metadata["inputs"]["channel_def"] = {"0": "Gender", "1": "Age", "2": "Ventricular volume"}
    options = {"with_conditioning": True, "cross_attention_dim": 3, "resblock_updown": True}
    state = unet(in_channels=7, **options).state_dict()
    published = Published({"configs/metadata.json": metadata})
    source = ForeignCheckpoint(state, published=published)
    importer = config.build("importer", UNET)
    tree = importer.config(source)
    names = ["gender", "age", "ventricular_volume"]
    assert tree["recipe"]["scalars"] == names
    assert importer.training_ranges(source) == dict.fromkeys(names, (0.0, 1.0))
    # a range that is published goes before what is known of the model
    metadata["inputs"]["value_range"] = [-2, 2]
    assert importer.training_ranges(source) == dict.fromkeys(names, (-2.0, 2.0))
    metadata["inputs"]["value_range"] = ["low", "high"]
    assert importer.training_ranges(source) == dict.fromkeys(names, (0.0, 1.0))
    assert tree["network"]["scalar_channels"]
    assert tree["data"]["preprocessing"]["shape"] == [160, 224, 160]
    # arrays that run to the left
    shapes = {"space.shift": (4,), "space.scale": (4,)}
    stem = importer.tensors(source, shapes)["network.hourglass.stem.weight"]
    assert torch.equal(stem, state["conv_in.conv.weight"].flip(2))
