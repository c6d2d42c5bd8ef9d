"""Slabs change what is in memory and nothing else."""

import copy
import gc
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from volumediff.autoencoders.kl import KL
from volumediff.autoencoders.monai_kl import MonaiKL
from volumediff.condition import Condition
from volumediff.memory import pass_plan, slabs
from volumediff.memory.graph import record
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.memory.norm_statistics import SlabMoments
from volumediff.memory.parts import part_of
from volumediff.memory.slab_convolution import Convolution
from volumediff.memory.streaming import stream
from volumediff.networks._block import ResidualBlock
from volumediff.networks._layers import Conv, NormAct, PlaneConv, conv, whole
from volumediff.networks.flowlet import FlowLet
from volumediff.networks.guided import Guided
from volumediff.networks.monai_unet import MonaiUNet
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.planning.tracer import Tracer

SIZE = (9, 8, 6)
ALL = 99


def draw(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def filled(module):
    """No weight is zero, so that nothing can be left out unnoticed."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.double()


def unet(norm="group", embedding="film"):
    arguments = {"widths": (8, 16), "blocks": 2, "attention_levels": (1,)}
    return filled(UNet(2, 2, norm=norm, embedding=embedding, **arguments))


def guided(resampling):
    arguments = {"widths": (4, 8), "blocks": 1, "groups": 4, "attention_levels": (1,)}
    return filled(Guided(2, 2, resampling=resampling, **arguments))


def monai(resampling):
    arguments = {"widths": (4, 8), "blocks": 1, "groups": 2, "head_size": 4}
    return filled(MonaiUNet(2, 2, resampling=resampling, **arguments))


def flowlet():
    arguments = {"widths": (4, 8), "blocks": 1, "groups": 2, "heads": 2, "condition": 6}
    return filled(FlowLet(2, 2, classes=2, attention_levels=(1,), **arguments))


def pseudo3d(norm="group"):
    return filled(Pseudo3D(2, 2, widths=(8, 16), blocks=1, attention_levels=(1,), norm=norm))


NETWORKS = {
    "unet": unet,
    "unet-additive": lambda: unet(embedding="additive"),
    "unet-voxel": lambda: unet("voxel"),
    "guided-block": lambda: guided("block"),
    "flowlet": flowlet,
    "guided-convolution": lambda: guided("convolution"),
    "monai-block": lambda: monai("block"),
    "monai-convolution": lambda: monai("convolution"),
    "pseudo3d": pseudo3d,
    "pseudo3d-voxel": lambda: pseudo3d("voxel"),
}


@pytest.fixture(scope="module", params=NETWORKS)
def plain(request):
    """A network, its input, and what it gives in one piece: output and gradients."""
    network = NETWORKS[request.param]()
    x = draw(2, 2, *SIZE).requires_grad_()
    e = draw(2, network.embedding.width, seed=1).requires_grad_()
    y = network.body(x, e)
    g = draw(*y.shape, seed=2)
    given = [x, e, *pieces(network)]
    return network, x, e, g, y.detach(), torch.autograd.grad(y, given, g)


def pieces(network):
    """Parameters of the network without its embedding."""
    inner = {id(p) for p in network.embedding.parameters()}
    return [p for p in network.parameters() if id(p) not in inner]


def close(found, expected, bound):
    """Equal up to `bound` of each tensor's size; a bias just before a norm has no gradient."""
    most = max(float(b.abs().max()) for b in expected)
    for a, b in zip(found, expected, strict=True):
        size = max(float(b.abs().max()), 1e-2 * most)
        torch.testing.assert_close(a, b, rtol=0, atol=bound * size)


@pytest.mark.parametrize("how", [{}, {"offload": True}, {"recompute_skips": True}], ids=str)
@pytest.mark.parametrize("slab", [None, 1, 2, 5, 100])
def test_inference_is_exact(plain, slab, how):
    network, x, e, _, y, _ = plain
    with torch.no_grad():
        close([stream(network.body, x, e, slab=slab, **how)], [y], 1e-12)


@pytest.mark.parametrize("offload", [False, True])
@pytest.mark.parametrize("checkpoint", [0, 1, ALL])
@pytest.mark.parametrize("slab", [None, 2, 5])
def test_gradients_are_exact(plain, slab, checkpoint, offload):
    network, x, e, g, y, gradients = plain
    found = stream(network.body, x, e, slab=slab, offload=offload, checkpoint=checkpoint)
    close([found], [y], 1e-12)
    given = [x, e, *pieces(network)]
    close(torch.autograd.grad(found, given, g), gradients, 1e-10)


def test_float32_stays_within_rounding(plain):
    network, x, e, g, y, gradients = plain
    network = copy.deepcopy(network).float()
    x, e = x.detach().float().requires_grad_(), e.detach().float().requires_grad_()
    found = stream(network.body, x, e, slab=2, checkpoint=ALL)
    close([found.double()], [y], 1e-5)
    given = [x, e, *pieces(network)]
    close([t.double() for t in torch.autograd.grad(found, given, g.float())], gradients, 1e-4)


AUTOENCODERS = {
    "kl": lambda: KL(1, widths=(8, 16), strides=((2, 2, 2),), blocks=1),
    "monai": lambda: MonaiKL(1, widths=(4, 8), blocks=1, groups=2, decoder_attention=True),
    "maisi": lambda: MonaiKL(
        1, widths=(4, 8), blocks=1, groups=2, upsampling="trilinear", interval=(0.0, 1.0)
    ),
}


@pytest.mark.parametrize("name", AUTOENCODERS)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
@pytest.mark.parametrize("slab", [None, 1, 3])
def test_autoencoders_are_exact(name, part, slab):
    autoencoder = filled(AUTOENCODERS[name]())
    module = autoencoder.codec[part]
    x = draw(1, 1 if part == "encoder" else 4, 10, 6, 8).requires_grad_()
    y = module(x)
    g = draw(*y.shape, seed=1)
    given = [x, *module.parameters()]
    expected = torch.autograd.grad(y, given, g)
    found = stream(type(module).forward.__get__(module), x, slab=slab, checkpoint=ALL)
    close([found], [y.detach()], 1e-12)
    close(torch.autograd.grad(found, given, g), expected, 1e-10)


def test_bfloat16_is_as_near_as_one_piece():
    network = unet().float()
    x, e = draw(1, 2, 12, 10, 8).float(), draw(1, network.embedding.width, seed=1).float()
    with torch.no_grad():
        exact = network.body(x, e)
        whole_error = (network.body(x.bfloat16(), e).float() - exact).norm()
        slab_error = (stream(network.body, x.bfloat16(), e, slab=3).float() - exact).norm()
    assert 0 < slab_error < 1.2 * whole_error


def steps(policy, seed=0):
    """Losses of twenty steps of Adam."""
    torch.manual_seed(seed)
    network = UNet(1, 1, widths=(8, 16), blocks=1, attention_levels=(1,))
    policy.apply(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    x = draw(1, 1, 8, 8, 8).float()
    losses = []
    for k in range(20):
        z = x + draw(*x.shape, seed=k).float()
        loss = (network(z, torch.tensor([0.5])) - x).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)


@pytest.mark.parametrize(
    "policy",
    [
        MemoryPolicy(checkpoint=True),
        MemoryPolicy(checkpoint=1, channels_last=True),
        MemoryPolicy(slab=3),
        MemoryPolicy(slab=3, checkpoint=True, channels_last=True),
        MemoryPolicy(offload=True, checkpoint=1),
        MemoryPolicy(slab=2, offload=True, checkpoint=True),
    ],
    ids=str,
)
def test_loss_curves_are_those_of_the_plain_run(policy):
    reference = steps(MemoryPolicy())
    assert reference[-1] < 0.9 * reference[0]
    torch.testing.assert_close(steps(policy), reference, rtol=1e-5, atol=1e-5)


def held(policy, *, training):
    """Peak of live bytes, on the device and in host memory."""
    network = UNet(1, 1, widths=(16, 16), blocks=1)
    policy.apply(network)
    x, t = draw(1, 1, 48, 24, 24).float(), torch.tensor([0.5])
    with torch.set_grad_enabled(training), Tracer() as tracer:
        y = network(x, t)
        if training:
            y.square().mean().backward()
    return tracer.peak.device, tracer.peak.host


def test_slabs_need_a_fraction_of_the_memory():
    one_tensor = 16 * 48 * 24 * 24 * 4
    whole_run, _ = held(MemoryPolicy(), training=False)
    cut, nothing = held(MemoryPolicy(slab=4), training=False)
    away, waiting = held(MemoryPolicy(slab=4, offload=True), training=False)
    again, _ = held(MemoryPolicy(slab=4, recompute_skips=True), training=False)
    assert nothing == 0
    assert again < 3 * one_tensor
    assert cut < 0.8 * whole_run
    assert away < 1.5 * one_tensor < waiting
    trained, _ = held(MemoryPolicy(checkpoint=True), training=True)
    cut, _ = held(MemoryPolicy(slab=4, checkpoint=True), training=True)
    away, waiting = held(MemoryPolicy(slab=4, checkpoint=True, offload=True), training=True)
    assert cut < min(12 * one_tensor, trained)
    # Two slabs on their way in each direction are counted as well.
    assert away < 3 * one_tensor < waiting


CUTS = {
    "conv": (Convolution((1, 1, 1), (1, 1, 1), (draw(3, 2, 3, 3, 3), draw(3))), 9),
    "strided": (Convolution((2, 2, 2), (1, 1, 1), (draw(3, 2, 3, 3, 3),)), 5),
    "unpadded": (Convolution((2, 2, 2), (0, 0, 0), (draw(3, 2, 3, 3, 3),)), 4),
    "pointwise kernel": (Convolution((1, 1, 1), (0, 0, 0), (draw(3, 2, 1, 1, 1),)), 9),
    "wide": (Convolution((1, 1, 1), (2, 0, 0), (draw(3, 2, 5, 1, 1),)), 9),
    "nearest": (slabs.NearestUpsampling((2, 2, 1)), 18),
    "nearest in planes": (slabs.NearestUpsampling((1, 2, 2)), 9),
    "linear": (slabs.LinearUpsampling(), 18),
    "average": (slabs.Average((2, 2, 2), False), 4),
    "average of the rest": (slabs.Average((2, 2, 2), True), 5),
    "pad": (slabs.Pad((3, 1, 0), 9), 12),
    "crop": (slabs.CropPlanes(5, 4), 7),
}


@pytest.mark.parametrize("name", CUTS)
@pytest.mark.parametrize("size", [1, 2, 3, 4])
@torch.no_grad()
def test_every_operation_gives_its_planes(name, size):
    operation, depth = CUTS[name]
    x = draw(1, 2, *SIZE)
    expected = {
        "conv": lambda: F.conv3d(x, *operation.small, padding=1),
        "strided": lambda: F.conv3d(x, *operation.small, stride=2, padding=1),
        "unpadded": lambda: F.conv3d(x, *operation.small, stride=2),
        "pointwise kernel": lambda: F.conv3d(x, *operation.small),
        "wide": lambda: F.conv3d(x, *operation.small, padding=(2, 0, 0)),
        "nearest": lambda: F.interpolate(x, scale_factor=[2.0, 2.0, 1.0]),
        "nearest in planes": lambda: F.interpolate(x, scale_factor=[1.0, 2.0, 2.0]),
        "linear": lambda: F.interpolate(x, scale_factor=2.0, mode="trilinear"),
        "average": lambda: F.avg_pool3d(x, 2),
        "average of the rest": lambda: F.avg_pool3d(x, 2, ceil_mode=True),
        "pad": lambda: F.pad(x, (0, 0, 0, 1, 0, 3)),
        "crop": lambda: x[:, :, :7, :5, :4],
    }[name]()
    assert expected.shape[2] == depth
    for lo in range(0, depth, size):
        wanted = (lo, min(lo + size, depth))
        ((first, last),) = operation.needs(wanted, [SIZE[0]])
        found = operation(wanted, [x[:, :, first:last]], operation.small)
        torch.testing.assert_close(found, expected[:, :, slice(*wanted)], rtol=0, atol=1e-13)


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.bfloat16, 1e-4)])
def test_moments_merge_exactly(dtype, bound):
    x = (20 + 3 * draw(2, 4, 11, 6, 5)).to(dtype)
    moments = SlabMoments()
    for part in x.split(3, dim=2):
        moments.update(part)
    mean, variance = moments.result()
    torch.testing.assert_close(mean, x.double().mean((2, 3, 4)), rtol=bound, atol=0)
    expected = x.double().var((2, 3, 4), correction=0)
    torch.testing.assert_close(variance, expected, rtol=bound, atol=0)


def test_what_cannot_be_cut_is_refused_by_name():
    block = ResidualBlock(2, 2)
    with pytest.raises(NotImplementedError, match=r"flip on a volume .* memory.slab=null"):
        record(lambda x: block(x.flip(2)), draw(1, 2, *SIZE).float())
    with pytest.raises(NotImplementedError, match="first voxels"):
        record(lambda x: x[:, :, 1:], draw(1, 2, *SIZE))
    with pytest.raises(NotImplementedError, match="does not depend"):
        record(lambda x: torch.zeros(3), draw(1, 2, *SIZE))


class Mean(nn.Module):
    """An operation that needs everything."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))

    @whole
    def forward(self, x):
        return x - self.gain * x.mean((2, 3, 4), keepdim=True)


class Odds(nn.Module):
    """Operations that the package's own networks do not use together."""

    def __init__(self):
        super().__init__()
        self.act = NormAct(4)
        self.first, self.second = Conv(2, 4), PlaneConv(6, 4)
        self.mean = Mean()

    def forward(self, x, gain, other):
        h = self.act(self.first(x))
        h = torch.cat([F.interpolate(F.avg_pool3d(h, 2), scale_factor=2), other], 1)
        h = self.second(h) * gain
        h = F.silu(self.mean(h)) / 3 - h
        h = conv(
            F.pad(h, (0, 1, 0, 1, 0, 1)),
            self.first.weight[:, :1].expand(4, 4, 3, 3, 3),
            None,
            stride=(2, 2, 2),
            padding=(0, 0, 0),
        )
        return 1.5 * h + 2


def test_the_vocabulary_in_other_orders():
    network = filled(Odds())
    x, other = draw(1, 2, 8, 6, 4), draw(1, 2, 8, 6, 4, seed=1)
    gain = draw(1, 4, 1, 1, 1, seed=2)
    given = [t.requires_grad_() for t in (x, gain, other)] + list(network.parameters())
    y = network(x, gain, other)
    g = draw(*y.shape, seed=3)
    expected = torch.autograd.grad(y, given, g)
    for slab in (None, 1, 3):
        found = stream(network, x, gain, other, slab=slab, checkpoint=ALL)
        close([found], [y.detach()], 1e-12)
        close(torch.autograd.grad(found, given, g), expected, 1e-10)


def test_nothing_is_left_behind():
    network = UNet(1, 1, widths=(8, 8), blocks=1)
    MemoryPolicy(slab=3, checkpoint=True).apply(network)
    gc.collect()
    gc.disable()  # what only a collection would free stays in memory for many steps
    try:
        with Tracer() as tracer:
            x = draw(1, 1, 8, 8, 8).float()
            t = torch.tensor([0.5])
            tracer.follow(network.parameters())
            before = tracer.live
            network(x, t).sum().backward()
            network.zero_grad()
            assert tracer.live == before
    finally:
        gc.enable()


def test_gradients_come_once():
    network = unet()
    x, e = draw(1, 2, *SIZE), draw(1, network.embedding.width)
    y = stream(network.body, x, e, slab=2)
    y.sum().backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="only once"):
        y.sum().backward()


def test_policies_change_how_not_what():
    network = UNet(2, 2, widths=(8, 16), blocks=1, classes=2)
    filled(network)
    z, t, told = draw(1, 2, *SIZE), torch.tensor([0.3]), Condition(label=torch.tensor([1]))
    y = network(z, t, told)
    names = list(network.state_dict())
    MemoryPolicy(slab=2, checkpoint=True).apply(network)
    twin = copy.deepcopy(network)
    assert list(twin.state_dict()) == names
    torch.testing.assert_close(twin(z, t, told), y, rtol=0, atol=1e-12)
    assert twin.body.module is twin
    MemoryPolicy().apply(twin)
    assert torch.equal(twin(z, t, told), y)


@pytest.mark.parametrize("words", [{"slab": 0}, {"checkpoint": -1}])
def test_policies_refuse_nonsense(words):
    with pytest.raises(ValueError, match="expected memory"):
        MemoryPolicy(**words)


@pytest.mark.parametrize("again", [True, False])
def test_the_widest_volume_is_made_again(monkeypatch, again):
    torch.manual_seed(0)
    decoder = MonaiKL(1, widths=(16, 32), blocks=1, groups=4).codec.decoder
    x = draw(1, 4, 16, 12, 12).float()
    if not again:
        monkeypatch.setattr(pass_plan, "worth_rebuilding", lambda *_: set())
    with Tracer() as tracer:
        y = stream(type(decoder).forward.__get__(decoder), x, slab=2, checkpoint=ALL)
        y.square().mean().backward()
    finest = 16 * 32 * 24 * 24 * 4
    # Enlarged, with twice the channels, it and its gradient alone are four times the others.
    assert (tracer.peak.device < 6 * finest) == again


class Calls(TorchDispatchMode):
    """How often operations are called."""

    def __init__(self):
        super().__init__()
        self.number = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.number[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def test_more_slabs_cast_and_merge_no_more():
    network = UNet(1, 1, widths=(8, 16), blocks=1)
    x, e = draw(1, 1, 32, 8, 8).bfloat16(), draw(1, network.embedding.width).float()
    found = {}
    for slab in (4, 2):
        with Calls() as calls:
            stream(network.body, x, e, slab=slab).sum().backward()
        found[slab] = calls.number
    grown = {name for name, n in found[2].items() if n > found[4][name]}
    assert found[2]["aten::convolution"] > 1.8 * found[4]["aten::convolution"]
    small = {"aten::_to_copy", "aten::rsqrt", "aten::zeros_like", "aten::ones_like"}
    assert not grown & small
    # Gradients of a layer that now has more than one slab are summed once.
    parameters = sum(1 for _ in network.parameters())
    assert found[2]["aten::stack"] - found[4]["aten::stack"] <= parameters


def test_leaves_that_only_add_are_not_read():
    graph = record(lambda x: F.silu(x) + 2 * (x - 1), draw(1, 2, *SIZE))
    assert not part_of(graph.output, set()).unread
    graph = record(
        lambda x, y: F.avg_pool3d(F.silu(x) + 2 * y[0], 2), draw(1, 2, *SIZE), (draw(1, 2, *SIZE),)
    )
    part = part_of(graph.output, set())
    assert [leaf.source for leaf in part.unread] == [1]
