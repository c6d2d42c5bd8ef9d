"""Weights that are cast once per pass: the same numbers in fewer launches, on a pretend GPU."""

import pretend_cuda
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.networks._layers import Conv
from volumediff.networks.unet import UNet


class Casts(TorchDispatchMode):
    """Counts casts of single kernels to half precision."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and args[0].shape[2:] == (3, 3, 3):
            self.count += kwargs.get("dtype") == torch.bfloat16
        return function(*args, **kwargs)


def step(policy, *, beforehand):
    """Output and gradients of two passes, and how many kernels were cast one by one."""
    torch.manual_seed(0)
    network = UNet(1, 1, widths=(4, 6), blocks=1)
    for layer in network.modules():
        if isinstance(layer, Conv):
            torch.nn.init.normal_(layer.weight, std=0.1)
    policy.apply(network)
    network.to("cuda")
    if not beforehand:
        del network.body
    x, t = torch.randn(1, 1, 8, 8, 8).to("cuda"), torch.tensor([0.5]).to("cuda")
    with Casts() as casts:
        for _ in range(2):
            y = network(x.to(torch.bfloat16), t)
            (y.float() - x).square().mean().backward()
    assert all(p.dtype == torch.float32 for p in network.parameters())
    assert not any("weight" in vars(m) for m in network.modules())
    return [y.detach().cpu(), *(p.grad.cpu() for p in network.parameters())], casts.count


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_pass_that_casts_beforehand_has_the_same_numbers(last, checkpoint):
    policy = MemoryPolicy("bfloat16", channels_last=last, checkpoint=checkpoint)
    with pretend_cuda.device():
        got, casts = step(policy, beforehand=True)
        wanted, each = step(policy, beforehand=False)
    for ours, theirs in zip(got, wanted, strict=True):
        assert torch.equal(ours, theirs)
    # What is recomputed casts for itself.
    assert casts < each / 2 if checkpoint else casts == 0 < each


def test_a_pass_in_float32_keeps_its_weights():
    with pretend_cuda.device():
        network = UNet(1, 1, widths=(4, 6), blocks=1).to("cuda")
        x, t = torch.randn(1, 1, 4, 4, 4).to("cuda"), torch.tensor([0.5]).to("cuda")
        torch.nn.init.normal_(network.hourglass.head.weight)
        before = network(x, t).cpu()
        MemoryPolicy("bfloat16").apply(network)
        assert torch.equal(network(x, t).cpu(), before)
