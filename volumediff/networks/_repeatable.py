r"""Resampling with gradients that two runs compute alike, bit for bit, on a GPU.

torch's own backward passes of pooling and of linear interpolation have no deterministic CUDA
kernel (`torch.use_deterministic_algorithms`): they add to one voxel from several threads, in any
order. Here forward passes are torch's, and backward passes gather: a voxel sums what concerns it,
in one order. Both maps are linear, so that nothing is kept for them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_unary

from volumediff.shapes import Shape

__all__ = ["linear_twice", "mean_of_cells"]


def mean_of_cells(
    x: Float[Tensor, "b c d h w"], size: Sequence[int], *, ceil: bool
) -> Float[Tensor, "b c d2 h2 w2"]:
    """Means over cells that do not overlap.

    Arguments:
        size: voxels of a cell along d, h, w, at most those of x
        ceil: keep the incomplete cells at the end of an axis, with the mean of what they have;
            otherwise they are left out
    """
    if has_torch_function_unary(x):
        return handle_torch_function(mean_of_cells, (x,), x, size, ceil=ceil)
    return _MeanOfCells.apply(x, tuple(size), ceil)


def linear_twice(x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c 2*d 2*h 2*w"]:
    """Linear interpolation to twice the size: 3/4 of the nearest and 1/4 of the next voxel."""
    if has_torch_function_unary(x):
        return handle_torch_function(linear_twice, (x,), x)
    return _LinearTwice.apply(x)


class _MeanOfCells(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, size: Shape, ceil: bool) -> Tensor:
        ctx.shape, ctx.size = x.shape, size
        # torch 2.13 has no bfloat16 kernel for it on the CPU.
        narrow = x.dtype == torch.bfloat16 and x.device.type == "cpu"
        wide = x.to(torch.float32) if narrow else x
        return F.avg_pool3d(wide, size, size, ceil_mode=ceil).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
        sizes, cells = ctx.shape[2:], grad.shape[2:]
        share = grad / (ctx.size[0] * ctx.size[1] * ctx.size[2])
        for axis, (n, s, m) in enumerate(zip(sizes, ctx.size, cells, strict=True), start=2):
            if n < s * m:
                share.narrow(axis, m - 1, 1).mul_(s / (n - s * (m - 1)))
        layout = torch.contiguous_format
        if not grad.is_contiguous() and grad.is_contiguous(memory_format=torch.channels_last_3d):
            layout = torch.channels_last_3d
        whole = [s * m for s, m in zip(ctx.size, cells, strict=True)]
        spread = torch.empty(
            (*ctx.shape[:2], *whole), dtype=grad.dtype, device=grad.device, memory_format=layout
        )
        parts = spread
        for axis, (s, m) in enumerate(zip(ctx.size, cells, strict=True)):
            parts = parts.unflatten(2 + 2 * axis, (m, s))
        parts.copy_(share[:, :, :, None, :, None, :, None])
        for axis, (n, total) in enumerate(zip(sizes, whole, strict=True), start=2):
            if n < total:
                spread = spread.narrow(axis, 0, n)
            elif n > total:
                spread = torch.cat([spread, _zeros_after(spread, axis, n - total)], dim=axis)
        return spread, None, None


def _zeros_after(x: Tensor, axis: int, count: int) -> Tensor:
    shape = list(x.shape)
    shape[axis] = count
    return x.new_zeros(shape)


class _LinearTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="trilinear")

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> Tensor:
        found = grad
        for axis in (4, 3, 2):
            found = _from_twice(found, axis)
        return found.to(grad.dtype)


def _from_twice(grad: Tensor, axis: int) -> Tensor:
    """The adjoint along an axis, in float32 or wider; ends are repeated in the forward pass."""
    wide = torch.promote_types(grad.dtype, torch.float32)
    even, odd = grad.unflatten(axis, (-1, 2)).unbind(axis + 1)
    n = even.shape[axis]
    found = even.to(wide, copy=True).add_(odd).mul_(3)
    found.narrow(axis, 0, n - 1).add_(even.narrow(axis, 1, n - 1))
    found.narrow(axis, 1, n - 1).add_(odd.narrow(axis, 0, n - 1))
    found.narrow(axis, 0, 1).add_(even.narrow(axis, 0, 1))
    found.narrow(axis, n - 1, 1).add_(odd.narrow(axis, n - 1, 1))
    return found.div_(4)
