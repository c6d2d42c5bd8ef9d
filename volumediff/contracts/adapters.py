"""The contract of adapters: nothing changes at the start, and all that is trained is their own."""

from typing import Any

import torch
from torch import Tensor, nn

from volumediff.adapters._base import Adapter, attach, merge
from volumediff.contracts.requirements import built, equal, randomised, require
from volumediff.networks._layers import Conv, Linear

__all__ = ["check_adapter"]

DTYPES = (torch.float32, torch.float64)


def check_adapter(cls: type, **arguments: Any) -> None:
    """The weights themselves at the start; gradients of the adapter alone; equal once merged."""
    adapter: Adapter = built(cls, arguments)
    for dtype in DTYPES:
        for layer, x in (
            (Conv(3, 5), torch.randn(2, 3, 4, 5, 6)),
            (Conv(4, 1, kernel=(1, 3, 3)), torch.randn(1, 4, 3, 3, 3)),
            (Linear(6, 2), torch.randn(3, 6)),
        ):
            _check_layer(adapter, layer.to(dtype), x.to(dtype))


def _check_layer(adapter: Adapter, layer: nn.Module, x: Tensor) -> None:
    names, before = list(layer.state_dict()), layer.weight.detach().clone()
    # Layouts are told by strides.
    layer.weight.data = _as_channels_last(layer.weight.data)
    expected = layer(x)
    attach(adapter, layer)
    require(torch.equal(layer.weight, before), "An adapter changes weights before it is trained.")
    require(torch.equal(layer(x), expected), "An adapter changes results before it is trained.")
    same = layer.weight.stride() == _as_channels_last(before).stride()
    require(same, "An adapter changes the layout of a weight.")
    require(layer.weight.dtype == x.dtype, "An adapter changes the dtype of a weight.")
    own = {n: p for n, p in layer.named_parameters() if p.requires_grad}
    require(own, "An adapter has nothing to train.")
    layer(x).square().mean().backward()
    found = [p.grad is not None and bool(p.grad.any()) for p in own.values()]
    require(any(found), "No gradient reaches an adapter at the start.")
    frozen = [p for p in layer.parameters() if not p.requires_grad]
    require(all(p.grad is None for p in frozen), "A gradient reaches a frozen weight.")
    randomised(layer.parametrizations["weight"][0])
    adapted, trained = layer.weight.detach().clone(), layer(x)
    require(not torch.equal(adapted, before), "An adapter changes nothing when it is trained.")
    original = layer.parametrizations["weight"].original
    require(torch.equal(original, before), "Training an adapter writes into the weight.")
    merge(layer)
    require(set(layer.state_dict()) == set(names), "A merged layer has other names.")
    equal(layer.weight, adapted, "A merged weight is not the corrected one.")
    equal(layer(x), trained, "A merged layer computes something else.", atol=1e-6)


def _as_channels_last(weight: Tensor) -> Tensor:
    if weight.ndim < 5:
        return weight
    return weight.contiguous(memory_format=torch.channels_last_3d)
