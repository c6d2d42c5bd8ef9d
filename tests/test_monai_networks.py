"""Our networks compute what MONAI's compute, and learn what they learn."""

import pytest
import torch
from monai_networks import (
    UNET,
    WORDS,
    autoencoder,
    imported,
    maisi_autoencoder,
    maisi_unet,
    randomised,
    unet,
)

from volumediff import config
from volumediff.autoencoders.monai_kl import MonaiKL
from volumediff.condition import Condition
from volumediff.importers._base import ForeignCheckpoint, checked
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks._embedding import fourier
from volumediff.networks._resample import UpConv
from volumediff.networks.monai_unet import MonaiUNet

INTERVAL = "autoencoder.interval=[-1,1]"  # as it is


# Attention to three tokens of five numbers.
CROSSED = {"with_conditioning": True, "cross_attention_dim": 5}


def volume(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# --- diffusion --------------------------------------------------------------------------------


@pytest.fixture
def exact_time(monkeypatch):
    """MONAI computes its time features in float32, whatever the network computes in."""
    modules = (
        "monai.networks.nets.diffusion_model_unet",
        "monai.apps.generation.maisi.networks.diffusion_model_unet_maisi",
    )
    for module in modules:
        name = f"{module}.get_timestep_embedding"
        monkeypatch.setattr(name, lambda k, width: fourier(k.double() / 1000, width))


def test_time_features_are_those_of_monai():
    from monai.networks.nets.diffusion_model_unet import get_timestep_embedding

    k = torch.tensor([0.0, 3.0, 499.0, 999.0])
    torch.testing.assert_close(
        fourier(k / 1000, 16), get_timestep_embedding(k, 16), rtol=0, atol=1e-4
    )


@pytest.mark.usefixtures("exact_time")
@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({}, (6, 4, 2), ()),
        ({"resblock_updown": True, "include_fc": False}, (2, 4, 6), ()),
        ({"num_class_embeds": 3, "use_combined_linear": True}, (4, 4, 4), ()),
        ({"channels": (8,), "attention_levels": (True,)}, (5, 3, 1), ()),
        (
            {
                "channels": (8, 8, 16),
                "num_res_blocks": (1, 2, 1),
                "attention_levels": (True, False, False),
                "num_head_channels": (2, 0, 8),
            },
            (8, 4, 4),
            ("network.head_size=[2,1,8]",),
        ),
        ({"norm_num_groups": 8}, (4, 4, 4), ("network.groups=8",)),
        ({**CROSSED, "transformer_num_layers": 2}, (4, 2, 6), ()),
        ({**CROSSED, "resblock_updown": True, "use_combined_linear": True}, (2, 4, 2), ()),
        ({**CROSSED, "num_class_embeds": 3, "include_fc": False}, (2, 6, 2), ()),
    ],
)
def test_unet_computes_and_learns_the_same(options, size, words):
    theirs = unet(**options)
    crossed = "cross_attention_dim" in options
    importer = {**UNET, "tokens": 3} if crossed else UNET
    ours = imported(importer, theirs.state_dict(), *WORDS, *words).network
    x, k = volume(2, 4, *size), torch.tensor([0, 730])
    label = torch.tensor([2, 0]) if "num_class_embeds" in options else None
    tokens = volume(2, 3, 5, seed=1) if crossed else None
    expected = theirs(x.clone(), k, context=tokens, class_labels=label)
    scalars = tokens.flatten(1) if crossed else None
    y = ours(x, (k.double() + 1) / 1000, Condition(label=label, scalars=scalars))
    close(y, expected)
    assert expected.std() > 0.1
    expected.square().sum().backward()
    y.square().sum().backward()
    # Gradients under the names of their weights: the importer maps names, so it maps them too.
    grads = {n: p.grad for n, p in theirs.named_parameters()}
    mapped = mapped_gradients(grads, ours)
    assert len(mapped) > 40
    # keys learn nothing of one token, but of three they do
    attending = [g for n, g in mapped.items() if ".to_context.kv." in n]
    assert all(g.chunk(2)[0].abs().max() > 1e-6 for g in attending)
    for name, gradient in mapped.items():
        parameter = ours.get_parameter(name.removeprefix("network."))
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-8, msg=name)


def mapped_gradients(grads, ours):
    """Their gradients under our names, without what has none of theirs."""
    shapes = {f"network.{n}": tuple(p.shape) for n, p in ours.named_parameters()}
    shapes |= dict.fromkeys(("space.shift", "space.scale"), (4,))
    found = checked(config.build("importer", UNET), ForeignCheckpoint(grads), shapes)
    # The identity in place of an absent projection, which theirs does not train.
    crossed = any("attn2" in name for name in grads)
    absent = not any(".attn1.out_proj." in n if crossed else ".out_proj." in n for n in grads)
    made_up = ".to_tokens.out." if crossed else ".attention.out."
    return {
        name: gradient
        for name, gradient in found.items()
        if name.startswith("network.") and not (absent and made_up in name)
    }


@pytest.mark.usefixtures("exact_time")
def test_context_that_is_also_the_channels_of_the_input():
    theirs = unet(**CROSSED, in_channels=9)
    ours = imported(UNET, theirs.state_dict(), *WORDS).network
    x, context, k = volume(2, 4, 4, 2, 6), volume(2, 5, seed=1), torch.tensor([12, 730])
    channels = context[:, :, None, None, None].expand(-1, -1, 4, 2, 6)
    expected = theirs(torch.cat((x, channels), 1), k, context=context[:, None])
    condition = Condition(scalars=context)
    close(ours(x, (k.double() + 1) / 1000, condition), expected)
    with pytest.raises(ValueError, match="takes 5 scalars per sample, got none"):
        ours(x, k / 1000)
    # the deepest features are on the way
    assert ours.features(x, k / 1000, condition).shape == (2, 16, 2, 1, 3)


@pytest.mark.usefixtures("exact_time")
@pytest.mark.parametrize("regions", [True, False])
def test_maisi_unet_computes_the_same(regions):
    theirs = maisi_unet(
        num_class_embeds=4,
        include_fc=True,
        include_spacing_input=True,
        include_top_region_index_input=regions,
        include_bottom_region_index_input=regions,
    )
    model = imported(UNET, theirs.state_dict(), *WORDS, "network.offset=0.0")
    x, t, label = volume(2, 4, 4, 6, 2), torch.tensor([0.3, 1.0]).double(), torch.tensor([3, 1])
    top, bottom, spacing = volume(2, 4), volume(2, 4, seed=1), volume(2, 3, seed=2)
    named = {"top_region_index_tensor": top, "bottom_region_index_tensor": bottom}
    expected = theirs(
        x.clone(),
        1000 * t,
        class_labels=label,
        spacing_tensor=spacing,
        **(named if regions else {}),
    )
    scalars = torch.cat((top, bottom, spacing), 1) if regions else spacing
    close(model.network(x, t, Condition(label=label, scalars=scalars)), expected)
    # the null class is no class
    null = model.network(x, t, Condition(scalars=scalars))
    theirs.class_embedding.weight.data.zero_()
    other = theirs(
        x.clone(),
        1000 * t,
        class_labels=label,
        spacing_tensor=spacing,
        **(named if regions else {}),
    )
    close(null, other)


# --- autoencoders -----------------------------------------------------------------------------


@pytest.fixture
def exact_norm(monkeypatch):
    """MAISI's normalisation computes in float32, whatever it is given."""
    name = "monai.apps.generation.maisi.networks.autoencoderkl_maisi.MaisiGroupNorm3D.forward"
    monkeypatch.setattr(name, torch.nn.GroupNorm.forward)


@pytest.mark.usefixtures("exact_norm")
@pytest.mark.parametrize(
    ("make", "options", "size"),
    [
        (autoencoder, {}, (6, 4, 2)),
        (autoencoder, {"in_channels": 2, "out_channels": 2, "norm_num_groups": 8}, (4, 4, 4)),
        (autoencoder, {"with_encoder_nonlocal_attn": True}, (2, 4, 6)),
        (
            autoencoder,
            {"with_decoder_nonlocal_attn": True, "include_fc": False, "num_res_blocks": (2, 1)},
            (2, 4, 6),
        ),
        (autoencoder, {"channels": (8,), "attention_levels": (False,)}, (5, 3, 1)),
        (
            autoencoder,
            {
                "channels": (8, 8, 16),
                "attention_levels": (False,) * 3,
                "num_res_blocks": (1, 2, 3),
                "with_encoder_nonlocal_attn": True,
                "with_decoder_nonlocal_attn": True,
            },
            (4, 8, 4),
        ),
        (
            autoencoder,
            {
                "channels": (8, 16, 16),
                "attention_levels": (True, False, True),
                "num_res_blocks": (1, 2, 2),
                "with_encoder_nonlocal_attn": True,
                "with_decoder_nonlocal_attn": True,
            },
            (4, 8, 4),
        ),
        (autoencoder, {"attention_levels": (False, True), "num_res_blocks": 2}, (4, 2, 4)),
        (maisi_autoencoder, {}, (6, 4, 2)),
        (
            maisi_autoencoder,
            {
                "num_channels": (8, 16, 16),
                "attention_levels": (False,) * 3,
                "num_res_blocks": (2, 1, 2),
                "with_decoder_nonlocal_attn": True,
            },
            (4, 4, 8),
        ),
    ],
)
def test_autoencoder_computes_and_learns_the_same(make, options, size):
    theirs = make(**options)
    words = (f"autoencoder.groups={options.get('norm_num_groups', 4)}", INTERVAL)
    ours = imported("monai_autoencoder", theirs.state_dict(), *words)
    x = volume(2, options.get("in_channels", 1), *size)
    mu, sigma = theirs.encode(x.clone())
    features = ours.codec["encoder"](x)
    close(ours.encode(x), mu)
    close(features.chunk(2, dim=1)[1].clamp(-30, 20).div(2).exp(), sigma)
    expected = theirs.decode(mu.clone())
    y = ours.decode(mu)
    close(y, expected)
    assert expected.std() > 0.05
    (theirs.decode(mu) + sigma.mean()).square().sum().backward()
    mu, log_variance = ours.codec["encoder"](x).chunk(2, dim=1)
    (ours.decode(mu) + log_variance.div(2).exp().mean()).square().sum().backward()
    grads = {n: p.grad for n, p in theirs.named_parameters()}
    shapes = {n: tuple(p.shape) for n, p in ours.named_parameters()}
    mapped = checked(
        config.build("importer", "monai_autoencoder"), ForeignCheckpoint(grads), shapes
    )
    identity = () if options.get("include_fc", make is autoencoder) else (".out.",)
    for name, parameter in ours.named_parameters():
        if not any(word in name for word in identity):
            close(parameter.grad, mapped[name])


# --- both -------------------------------------------------------------------------------------


def test_float32_modules_as_they_are():
    """Without the help of float64: MAISI's own normalisation and MONAI's own time features."""
    theirs = maisi_autoencoder().float()
    ours = imported("monai_autoencoder", theirs.state_dict(), "autoencoder.groups=4", INTERVAL)
    ours = ours.float()
    x = volume(1, 1, 8, 4, 6).float()
    with torch.no_grad():
        mu, _ = theirs.encode(x.clone())
        torch.testing.assert_close(ours.encode(x), mu, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(
            ours.decode(mu), theirs.decode(mu.clone()), rtol=1e-5, atol=1e-5
        )
        theirs = unet().float()
        ours = imported(UNET, theirs.state_dict(), *WORDS).network.float()
        z = volume(2, 4, 4, 6, 2).float()
        # (k + 1) / 1000 without rounding
        k, t = torch.tensor([124, 749]), torch.tensor([0.125, 0.75])
        torch.testing.assert_close(ours(z, t), theirs(z, k), rtol=1e-5, atol=1e-5)


def kept_and_gradients(module, call):
    """Bytes stored for the backward pass, and the gradients."""
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    module.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = call(module)
    y.square().sum().backward()
    return sum(kept.values()), {n: p.grad.clone() for n, p in module.named_parameters()}


@pytest.mark.parametrize(
    "policy", [{"checkpoint": True}, {"slab": 2}, {"slab": 3, "offload": True}]
)
def test_attention_to_a_context_under_every_policy(policy):
    options = {"widths": (8, 8), "blocks": 1, "groups": 2, "head_size": 4}
    net = MonaiUNet(2, 2, scalars=6, context=3, scalar_channels=True, **options)
    randomised(net)
    condition = Condition(scalars=volume(2, 6, seed=3))
    z, t = volume(2, 2, 6, 5, 4), torch.tensor([0.4, 0.8]).double()
    y = net(z, t, condition)
    _, expected = kept_and_gradients(net, lambda m: m(z, t, condition))
    MemoryPolicy(**policy).apply(net)
    close(net(z, t, condition), y)
    _, gradients = kept_and_gradients(net, lambda m: m(z, t, condition))
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-8, atol=1e-8, msg=name)


@pytest.mark.parametrize("resampling", ["convolution", "block"])
def test_recomputed_unet_stores_no_concatenation(resampling):
    net = MonaiUNet(2, 2, widths=(8, 8), blocks=1, groups=2, resampling=resampling)
    randomised(net)
    z, t = volume(1, 2, 8, 8, 8), torch.tensor([0.4])
    _, expected = kept_and_gradients(net, lambda m: m(z, t))
    MemoryPolicy(checkpoint=True).apply(net)
    shapes = []

    def keep(tensor):
        shapes.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        net(z, t)
    volumes = [s for s in shapes if len(s) == 5 and s[2] > 3]
    assert volumes
    assert all(s[1] <= 8 for s in volumes)
    _, gradients = kept_and_gradients(net, lambda m: m(z, t))
    for name, gradient in gradients.items():
        close(gradient, expected[name])


def test_recomputed_convolution_stores_the_small_volume():
    layer = torch.nn.Sequential(UpConv(4)).double()
    MemoryPolicy(checkpoint=True).apply(layer)
    x = volume(1, 4, 8, 8, 8).requires_grad_()
    kept, _ = kept_and_gradients(layer, lambda m: m(x))
    assert kept == x.numel() * 8


@pytest.mark.parametrize("upsampling", ["nearest", "trilinear"])
def test_recomputed_autoencoder(upsampling):
    options = {"widths": (8, 8), "blocks": 1, "groups": 4, "upsampling": upsampling}
    model = randomised(MonaiKL(1, decoder_attention=True, **options))
    x = volume(1, 1, 8, 8, 8)
    plain, expected = kept_and_gradients(model, lambda m: m.decode(m.encode(x)))
    MemoryPolicy(checkpoint=True).apply(model)
    kept, gradients = kept_and_gradients(model, lambda m: m.decode(m.encode(x)))
    assert kept < 0.5 * plain
    for name, gradient in gradients.items():
        close(gradient, expected[name])


def test_wrong_arguments():
    for options, words in (
        ({"widths": ()}, "at least one level"),
        ({"blocks": (1, 1)}, r"blocks \(1, 1\): expected one number, or one for each of 4 levels"),
        ({"groups": 24}, r"groups must divide all widths \(64, 128, 256, 512\), got 24"),
        ({"head_size": (8, 8, 8, 48)}, "head_size 48 must divide the width 512 of level 3"),
        ({"scalars": 5, "scalar_groups": (4,)}, r"scalar_groups \(4,\) .* sum to the 5 scalars"),
        ({"context": 4}, "context must divide the number of scalars.* got 4 for 0 scalars"),
        ({"context": 4, "scalars": 6}, "context must divide .* got 4 for 6 scalars"),
        ({"context": -1, "scalars": 1}, "context must divide .* got -1 for 1 scalars"),
        ({"context": 2, "scalars": 2, "scalar_groups": (2,)}, "sum to the 0 scalars"),
        ({"context": 2, "scalars": 2, "transformer_blocks": 0}, "transformer_blocks .* got 0"),
    ):
        with torch.device("meta"), pytest.raises(ValueError, match=words):
            MonaiUNet(1, 1, **options)
    for options, words in (
        ({"widths": ()}, "at least one level"),
        ({"blocks": (1, 1)}, "a positive number of blocks for each"),
        ({"groups": 24}, r"groups must divide all widths \(64, 128, 256\), got 24"),
        ({"attention_levels": (3,)}, r"attention_levels \(3,\) must be levels .* 0 .* to 2"),
    ):
        with torch.device("meta"), pytest.raises(ValueError, match=words):
            MonaiKL(1, **options)
