"""Whatever the network, the volume and the policy: slabs give what one piece gives."""

import gc
import weakref

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, reject, settings
from hypothesis import strategies as st
from torch import nn

from volumediff.autoencoders.kl import KL
from volumediff.autoencoders.monai_kl import MonaiKL
from volumediff.autoencoders.vq import VQ
from volumediff.condition import Condition
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.memory.streaming import stream
from volumediff.networks._block import ResidualBlock
from volumediff.networks.flowlet import FlowLet
from volumediff.networks.guided import Guided
from volumediff.networks.monai_unet import MonaiUNet
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet

FEW = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def filled(module):
    """No weight is zero, so that nothing can be left out unnoticed."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def gradients(y, wanted, g):
    found = torch.autograd.grad(y, wanted, g, allow_unused=True)
    return [torch.zeros_like(t) if f is None else f for t, f in zip(wanted, found, strict=True)]


def close(found, expected, bound):
    """Equal up to `bound` of each tensor's size; a bias just before a norm has no gradient."""
    most = max(float(b.abs().max()) for b in expected)
    for a, b in zip(found, expected, strict=True):
        size = max(float(b.abs().max()), 1e-2 * most)
        torch.testing.assert_close(a.double(), b.double(), rtol=0, atol=bound * size)


WIDTHS = st.lists(st.sampled_from([2, 4, 6]), min_size=1, max_size=3).map(tuple)
OF_NETWORK = {
    "unet": lambda draw: {
        "norm": draw(st.sampled_from(["group", "voxel"])),
        "embedding": draw(st.sampled_from(["film", "additive"])),
        "factor": draw(st.sampled_from([(2, 2, 2), (1, 2, 2), (2, 1, 1)])),
    },
    "guided": lambda draw: {
        "groups": draw(st.sampled_from([1, 2])),
        "embedding": draw(st.sampled_from(["film", "additive"])),
        "resampling": draw(st.sampled_from(["block", "convolution"])),
    },
    "monai": lambda draw: {
        "groups": 2,
        "head_size": 2,
        "resampling": draw(st.sampled_from(["block", "convolution"])),
    },
    "flowlet": lambda draw: {
        "groups": draw(st.sampled_from([1, 2])),
        "heads": draw(st.sampled_from([1, 2])),
        "condition": 3,
    },
    "pseudo3d": lambda draw: {
        "norm": draw(st.sampled_from(["group", "voxel"])),
        "through_plane": draw(st.booleans()),
    },
}
CLASSES = {
    "unet": UNet,
    "guided": Guided,
    "monai": MonaiUNet,
    "flowlet": FlowLet,
    "pseudo3d": Pseudo3D,
}


@st.composite
def policies(choose, depth):
    slab = choose(st.one_of(st.none(), st.integers(1, depth + 1)))
    return MemoryPolicy(
        slab=slab,
        offload=slab is None or choose(st.booleans()),
        checkpoint=choose(st.sampled_from([False, 1, 2, True])),
        recompute_skips=choose(st.booleans()),
        channels_last=choose(st.booleans()),
    )


@st.composite
def networks(choose):
    """A network, what it is given, and what of it is trained."""
    name = choose(st.sampled_from(sorted(CLASSES)))
    widths = choose(WIDTHS)
    told = {
        "image_channels": choose(st.sampled_from([0, 2])),
        "classes": choose(st.sampled_from([0, 3])),
        "scalars": choose(st.sampled_from([0, 2])),
        "coordinates": choose(st.booleans()),
    }
    attends = choose(st.sampled_from([(), (len(widths) - 1,)]))
    own = OF_NETWORK[name](choose)
    made = CLASSES[name](
        2,
        3,
        widths=widths,
        blocks=choose(st.integers(1, 2)),
        attention_levels=attends,
        **told,
        **own,
    )
    b, size = choose(st.integers(1, 3)), choose(st.tuples(*[st.integers(1, 7)] * 3))
    frozen = choose(st.sampled_from(["nothing", "half", "all"]))
    return filled(made), (b, 2, *size), told, frozen


def condition(shape, told):
    b, c, *size = shape
    return Condition(
        image=draw(b, c, *size, seed=3) if told["image_channels"] else None,
        label=torch.arange(b) if told["classes"] else None,
        scalars=draw(b, 2, seed=4) if told["scalars"] else None,
        coordinates=draw(b, 3, *size, seed=5) if told["coordinates"] else None,
    )


def freeze(module, which):
    for i, parameter in enumerate(module.parameters()):
        parameter.requires_grad_(which == "nothing" or (which == "half" and i % 3 == 1))


@FEW
@given(st.data())
def test_any_network_under_any_policy(data):
    network, shape, told, frozen = data.draw(networks())
    policy = data.draw(policies(shape[2]))
    freeze(network, frozen)
    given_condition = condition(shape, told)
    x, t = draw(*shape).requires_grad_(), torch.full((shape[0],), 0.4)
    wanted = [x, *(p for p in network.parameters() if p.requires_grad)]
    MemoryPolicy(channels_last=policy.channels_last).apply(network)
    try:
        y = network(x, t, given_condition)
    except ValueError:
        reject()  # torch does not normalise a single value
    g = draw(*y.shape, seed=1)
    expected = gradients(y, wanted, g)
    policy.apply(network)
    found = network(x, t, given_condition)
    close([found.detach()], [y.detach()], 1e-9)
    close(gradients(found, wanted, g), expected, 1e-7)
    with torch.no_grad():
        close([network(x, t, given_condition)], [y.detach()], 1e-9)


AUTOENCODERS = {
    "kl": lambda norm, planar: KL(
        1, widths=(4, 8), strides=((2 - planar, 2, 2),), blocks=1, norm=norm, planar=planar
    ),
    "vq": lambda norm, planar: VQ(
        1, widths=(4, 8), strides=((1, 2, 2),), blocks=1, norm=norm, planar=planar
    ),
    "monai": lambda norm, planar: MonaiKL(
        1,
        widths=(2, 4),
        blocks=1,
        groups=1,
        encoder_attention=norm == "group",
        upsampling="trilinear" if planar else "nearest",
    ),
}


@FEW
@given(st.data())
def test_any_autoencoder_under_any_policy(data):
    norm, planar = data.draw(st.sampled_from(["group", "voxel"])), data.draw(st.booleans())
    name = data.draw(st.sampled_from(sorted(AUTOENCODERS)))
    autoencoder = filled(AUTOENCODERS[name](norm, planar))
    part = data.draw(st.sampled_from(["encoder", "decoder"]))
    module = autoencoder.codec[part]
    size = data.draw(st.tuples(*[st.integers(1, 5).map(lambda n: 2 * n)] * 3))
    channels = 1 if part == "encoder" else autoencoder.latent_channels
    x = draw(data.draw(st.integers(1, 2)), channels, *size).requires_grad_()
    wanted = [x, *module.parameters()]
    y = module(x)
    g = draw(*y.shape, seed=1)
    expected = gradients(y, wanted, g)
    data.draw(policies(size[0])).apply(autoencoder)
    found = module(x)
    close([found.detach()], [y.detach()], 1e-9)
    close(gradients(found, wanted, g), expected, 1e-7)


def test_a_measured_input_gets_the_gradient_of_its_statistics():
    block = filled(ResidualBlock(4, 4))
    x = draw(2, 4, 5, 4, 3).requires_grad_()
    y = block(x)
    g = draw(*y.shape, seed=1)
    expected = gradients(y, [x], g)
    for slab in (None, 2):
        close(gradients(stream(block, x, slab=slab), [x], g), expected, 1e-10)


@pytest.mark.parametrize("training", [False, True])
def test_nothing_outlives_a_pass(training):
    network = filled(Guided(2, 2, widths=(4, 8), blocks=1))
    x, e = draw(1, 2, 5, 4, 3), draw(1, network.embedding.width)
    watch = weakref.ref(x)
    gc.collect()
    gc.disable()
    try:
        with torch.set_grad_enabled(training):
            y = stream(network.body, x, e, slab=2)
        if training:
            y.sum().backward()
        del x, y
        assert watch() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("what", ["input", "weight"])
def test_a_change_before_the_backward_pass_is_refused(what):
    network = filled(UNet(2, 2, widths=(4,), blocks=1))
    x, e = draw(1, 2, 5, 4, 3), draw(1, network.embedding.width)
    y = stream(network.body, x, e, slab=2)
    with torch.no_grad():
        (x if what == "input" else network.hourglass.head.weight).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_autocast_does_not_reach_into_slabs():
    network = filled(Guided(2, 2, widths=(4, 8), blocks=1)).float()
    x, e = draw(1, 2, 5, 4, 3).float(), draw(1, network.embedding.width).float()
    parameters = [p for n, p in network.named_parameters() if not n.startswith("embedding")]
    y = stream(network.body, x, e, slab=2)
    expected = torch.autograd.grad(y.sum(), parameters)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = stream(network.body, x, e, slab=2)
    assert found.dtype == torch.float32
    close(torch.autograd.grad(found.sum(), parameters), expected, 1e-5)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 7, 3), (4, 8, 6)], ids=str)
def test_single_slices_in_half_precision(size):
    network = filled(Pseudo3D(2, 2, widths=(4, 8), blocks=1)).float()
    x, t = draw(1, 2, *size).bfloat16(), torch.tensor([0.4])
    MemoryPolicy(channels_last=True).apply(network)
    y = network(x, t)
    parameters = list(network.parameters())
    expected = torch.autograd.grad(y.float().square().sum(), parameters)
    MemoryPolicy(channels_last=True, slab=1).apply(network)
    found = network(x, t)
    close([found.detach()], [y.detach()], 0.02)
    grads = torch.autograd.grad(found.float().square().sum(), parameters)
    flat, flat2 = (torch.cat([g.flatten() for g in gs]) for gs in (expected, grads))
    assert torch.cosine_similarity(flat, flat2, dim=0) > 0.999


def test_passes_share_nothing():
    """Two forward passes before a backward one, borrowed weights, and accumulation."""
    network = filled(MonaiUNet(2, 2, widths=(4, 8), blocks=1, groups=2, head_size=4))
    x, t = draw(2, 2, 6, 5, 4), torch.tensor([0.4, 0.4])

    def run():
        network.zero_grad()
        borrowed = {n: 1.1 * p.detach() for n, p in network.named_parameters()}
        weights = {n: p.requires_grad_() for n, p in borrowed.items()}
        a, b = network(x, t), network(x.flip(0), t / 2)
        c = torch.func.functional_call(network, weights, (x, t))
        ((a * b).sum() + c.square().sum()).backward()
        network(x[:1], t[:1]).sum().backward()
        return [p.grad for p in (*network.parameters(), *weights.values())]

    expected = run()
    MemoryPolicy(slab=2, checkpoint=True).apply(network)
    close(run(), [g.clone() for g in expected], 1e-10)
