"""Convolutions of slabs, with the planes beyond them that they read."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from volumediff.memory.slabs import Operation, Range, planes
from volumediff.networks._edges import conv_transposed
from volumediff.networks._layers import Triple, conv

__all__ = ["Convolution", "TransposedConvolution"]


@dataclass(eq=False, repr=False)
class Convolution(Operation):
    """Cross-correlation with zero padding; `small` is the weight and perhaps the bias.

    Under autograd it gives some number with the right gradients: nothing that follows a
    convolution within a part of the graph reads its value, see `volumediff.memory.streaming`.
    """

    stride: Triple
    padding: Triple
    small: tuple[Tensor, ...]

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        lo, hi = wanted
        first, last = self._unclipped(lo, hi)
        return [(max(first, 0), min(last, depths[0]))]

    def _unclipped(self, lo: int, hi: int) -> Range:
        step, pad, size = self.stride[0], self.padding[0], self.small[0].shape[2]
        return lo * step - pad, (hi - 1) * step - pad + size

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        (x,) = slabs
        weight, bias = small[0], small[1] if len(small) > 1 else None
        first, last = self._unclipped(*wanted)
        before = max(-first, 0)
        after = last - first - before - x.shape[2]
        padding = self.padding
        padded = x.shape[2] + 2 * padding[0] - weight.shape[2]
        if before < padding[0] or padded // self.stride[0] + 1 != wanted[1] - wanted[0]:
            # Planes beyond the volume are zeros; those within it are in the slab already.
            x = F.pad(x, (0, 0, 0, 0, before, after)) if before or after else x
            padding = (0, *padding[1:])
        function = conv if not torch.is_grad_enabled() else _gradients_of_conv
        x = _dense(x)
        return function(x, weight, bias, stride=self.stride, padding=padding)


@dataclass(eq=False, repr=False)
class TransposedConvolution(Operation):
    """Transposed convolution; `small` is the weight and the bias."""

    stride: Triple
    padding: Triple
    small: tuple[Tensor, ...]
    linear = False

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        step, pad = self.stride[0], self.padding[0]
        return [(self._first(wanted[0]), min((wanted[1] - 1 + pad) // step + 1, depths[0]))]

    def _first(self, plane: int) -> int:
        """Input plane i reaches the output planes from i step - pad to i step - pad + size - 1."""
        step, pad, size = self.stride[0], self.padding[0], self.small[0].shape[2]
        return max(-((size - 1 - pad - plane) // step), 0)

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        lo, hi = wanted
        padding = (0, *self.padding[1:])
        weight, bias = small
        y = conv_transposed(slabs[0], weight, bias, stride=self.stride, padding=padding)
        return planes(y, lo + self.padding[0] - self._first(lo) * self.stride[0], hi - lo)


def _dense(x: Tensor) -> Tensor:
    """x in a piece, as libraries of convolutions take it: their own copy would not be seen.

    Planes of a volume are that if its channels are last and it is one sample.
    """
    layouts = (torch.channels_last_3d, torch.contiguous_format)
    if any(x.is_contiguous(memory_format=layout) for layout in layouts):
        return x
    last = x.stride(1) == 1 and x.shape[1] > 1
    return x.contiguous(memory_format=layouts[0] if last else layouts[1])


def _gradients_of_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, *, stride: Triple, padding: Triple
) -> Tensor:
    """A stand-in for a convolution whose value nobody reads: one number, with its gradients."""
    sizes = zip(x.shape[2:], weight.shape[2:], stride, padding, strict=True)
    shape = [len(x), len(weight), *((n + 2 * p - k) // s + 1 for n, k, s, p in sizes)]
    if any(n < k for n, k in zip(x.shape[2:], weight.shape[2:], strict=True)):
        return conv(x, weight, bias, stride=stride, padding=padding)
    return _ConvGradients.apply(x, weight, bias, shape, stride, padding)


class _ConvGradients(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        shape: list[int],
        stride: Triple,
        padding: Triple,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = stride, padding
        ctx.bias = None if bias is None else bias.dtype
        # Any number does, of a tensor that is there.
        return weight[:1, 0, 0, 0, 0].to(x.dtype).expand(shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding = ctx.geometry
        for_x, for_weight, for_bias = ctx.needs_input_grad[:3]
        gx, gw, gb = torch.ops.aten.convolution_backward(
            grad,
            x,
            weight.to(x.dtype),
            None if ctx.bias is None else [len(weight)],
            stride,
            padding,
            (1, 1, 1),
            False,
            (0, 0, 0),
            1,
            (for_x, for_weight, for_bias and ctx.bias is not None),
        )
        gw = None if gw is None else gw.to(weight.dtype)
        gb = None if gb is None else gb.to(ctx.bias)
        return gx, gw, gb, None, None, None
