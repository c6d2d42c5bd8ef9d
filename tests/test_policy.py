"""A policy changes how a network runs, never what it computes."""

import copy

import pytest
import torch

from volumediff.condition import Condition
from volumediff.memory.heap import retain_heap
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks.guided import Guided
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet


def network(cls=UNet):
    torch.manual_seed(0)
    net = cls(2, 2, widths=(8, 16), blocks=1, attention_levels=(1,), classes=2)
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return net


def step(net, dtype):
    """Output, gradients by name, and bytes kept for the backward pass."""
    torch.manual_seed(1)
    z = torch.randn(2, 2, 7, 8, 6, dtype=torch.float64).to(dtype)
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    net.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        y = net(z, torch.tensor([0.2, 0.9]), Condition(label=torch.tensor([0, 2])))
    (y.double() - z.double()).square().mean().backward()
    return y.detach(), {n: p.grad.clone() for n, p in net.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("cls", [Guided, UNet, Pseudo3D])
@pytest.mark.parametrize("channels_last", [False, True])
def test_checkpointing_changes_memory_and_nothing_else(cls, channels_last):
    plain, saved = network(cls).double(), network(cls).double()
    MemoryPolicy(channels_last=channels_last).apply(plain)
    MemoryPolicy(channels_last=channels_last, checkpoint=True).apply(saved)
    assert list(plain.state_dict()) == list(saved.state_dict())
    y, gradients, kept = step(plain, torch.float64)
    y2, gradients2, kept2 = step(saved, torch.float64)
    assert torch.equal(y, y2)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradients2[name], gradient, rtol=0, atol=1e-12)
    assert kept2 < 0.6 * kept


def test_channels_last_changes_the_layout_and_nothing_else():
    plain, last = network(), network()
    MemoryPolicy(channels_last=True).apply(last)
    seen = []
    for stage in (last.hourglass.encoder[0][0], last.hourglass.decoder[0][0]):
        stage.register_forward_hook(lambda m, i, o: seen.append(o))
    y, gradients, _ = step(plain, torch.float32)
    y2, gradients2, _ = step(last, torch.float32)
    assert all(o.is_contiguous(memory_format=torch.channels_last_3d) for o in seen)
    torch.testing.assert_close(y2, y, rtol=1e-4, atol=1e-4)
    for name, gradient in gradients.items():
        bound = 1e-4 * gradient.abs().max().item()
        torch.testing.assert_close(gradients2[name], gradient, rtol=0, atol=bound)


def test_bfloat16_is_close_and_half_the_memory():
    exact, small = network(), network()
    policy = MemoryPolicy(dtype="bfloat16", channels_last=True)
    policy.apply(small)
    y, gradients, kept = step(exact, torch.float32)
    y2, gradients2, kept2 = step(small, policy.torch_dtype)
    assert y2.dtype == torch.bfloat16
    assert (y2 - y).square().mean().sqrt() < 0.05 * y.std()
    flat = torch.cat([g.flatten() for g in gradients.values()])
    flat2 = torch.cat([g.flatten() for g in gradients2.values()])
    assert torch.cosine_similarity(flat, flat2, dim=0) > 0.995
    assert all(g.dtype == torch.float32 for g in gradients2.values())
    assert kept2 < 0.75 * kept


def test_frozen_weights_give_the_same_bits():
    net = network()
    policy = MemoryPolicy(dtype="bfloat16", channels_last=True)
    policy.apply(net)
    z, t = torch.randn(1, 2, 7, 8, 6).bfloat16(), torch.tensor([0.3])
    with torch.no_grad():
        y = net(z, t)
        policy.freeze(net)
        assert torch.equal(net(z, t), y)
    kernels = [p for p in net.parameters() if p.ndim == 5]
    assert all(p.dtype == torch.bfloat16 and not p.requires_grad for p in kernels)
    assert next(net.embedding.parameters()).dtype == torch.float32


def test_policies_replace_each_other_and_survive_copies():
    net = network().double()
    reference = step(net, torch.float64)
    MemoryPolicy(checkpoint=True, channels_last=True).apply(net)
    MemoryPolicy(checkpoint=True, channels_last=True).apply(net)
    twin = copy.deepcopy(net)
    block = twin.hourglass.encoder[0][0].block
    assert block.forward.module is block
    with torch.no_grad():
        for p in net.parameters():
            p.zero_()
    assert torch.equal(step(twin, torch.float64)[0], reference[0])
    MemoryPolicy().apply(twin)
    assert step(twin, torch.float64)[2] == reference[2]


def test_heap_policy_answers():
    assert retain_heap() in (True, False)
