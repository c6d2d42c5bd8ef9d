"""Weights in half precision, cast by a few launches per pass in place of two per layer.

Master weights stay in float32. A convolution casts what it reads; here the weights of many layers
are cast together before a pass, and their gradients together after it. Numbers are the same.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.distributed.tensor import DTensor

from volumediff.networks._layers import Conv

__all__ = ["with_half_weights"]

# Layers that are cast together. Gradients of a group are ready together, too, and processes share
# them while the backward pass goes on: one group for all would leave nothing to overlap.
GROUP = 16


def with_half_weights(
    module: nn.Module, function: Callable[..., Tensor], x: Tensor, *arguments: Any
) -> Tensor:
    """function(x, *arguments), a pass of the module, with its convolutions cast to the dtype of x.

    Where a launch costs nothing, on a CPU, where no gradient is recorded, and so no cast kept, and
    where processes hold shards of the weights, layers cast for themselves.
    """
    layers = [m for m in module.modules() if isinstance(m, Conv)]
    weights = [p for layer in layers for p in layer.parameters()]
    if (
        not torch.is_grad_enabled()
        or any(p.device.type == "cpu" or isinstance(p, DTensor) for p in weights)
        or all(p.dtype == x.dtype for p in weights)
    ):
        return function(x, *arguments)
    with _shadowed(layers, x.dtype):
        return function(x, *arguments)


@contextmanager
def _shadowed(layers: list[Conv], dtype: torch.dtype) -> Iterator[None]:
    """Layers that read casts of their parameters, which stay what they are."""
    try:
        for start in range(0, len(layers), GROUP):
            named = [
                (layer, name, parameter)
                for layer in layers[start : start + GROUP]
                for name, parameter in layer.named_parameters(recurse=False)
            ]
            cast = _Cast.apply(dtype, *(parameter for _, _, parameter in named))
            for (layer, name, _), tensor in zip(named, cast, strict=True):
                # An attribute of the instance shadows the registered parameter.
                layer.__dict__[name] = tensor
        yield
    finally:
        for layer in layers:
            for name, _ in layer.named_parameters(recurse=False):
                layer.__dict__.pop(name, None)


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [t.dtype for t in tensors]
        ctx.set_materialize_grads(False)
        return tuple(_cast(tensors, [dtype] * len(tensors)))

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        there = [i for i, grad in enumerate(grads) if grad is not None]
        cast = _cast([grads[i] for i in there], [ctx.dtypes[i] for i in there])
        found = dict(zip(there, cast, strict=True))
        return None, *(found.get(i) for i in range(len(grads)))


def _cast(tensors: Any, dtypes: list[torch.dtype]) -> list[Tensor]:
    made = [torch.empty_like(t, dtype=dtype) for t, dtype in zip(tensors, dtypes, strict=True)]
    if made:
        torch._foreach_copy_(made, list(tensors))
    return made
