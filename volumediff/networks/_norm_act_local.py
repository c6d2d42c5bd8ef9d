r"""silu(s x̂ + b) under statistics of one slice or of one voxel, with separate operations.

The backward pass forms x̂ again from x, in two reused buffers; the formulas are those of
`_norm_act_group`. For slices, means follow from the gradients of s and b; a voxel has its own, and
torch's layer norm gives that gradient.
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from volumediff.networks._norm_act_group import dense, moments

__all__ = ["LocalNormAct"]


def _normalised(
    x: Float[Tensor, "b c *size"], groups: int | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x̂, mean and 1/σ; the kernels accumulate in float32 and keep the memory layout."""
    channels = x.shape[1]
    ones = zeros = None
    if x.device.type == "cpu" and x.dtype in (torch.bfloat16, torch.float16):
        # With float32 parameters the CPU kernels also return the statistics in float32.
        ones, zeros = torch.ones(channels), torch.zeros(channels)
    if groups is None:
        last = x.movedim(1, -1)
        y, mean, inverse = torch.native_layer_norm(last, (channels,), ones, zeros, eps)
        return y.movedim(-1, 1), mean, inverse
    if x.device.type != "cpu":
        return _from_moments(x, groups, eps)
    x, voxels = dense(x), x[0, 0].numel()
    return torch.native_group_norm(x, ones, zeros, x.shape[0], channels, voxels, groups, eps)


def _from_moments(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `_normalised`, on a GPU, where torch's own kernel refuses volumes with channels last.

    Statistics and coefficients are in float32 or wider, without a wide copy of x there.
    """
    parts = x.unflatten(1, (groups, -1))
    mean, variance = moments(parts)
    inverse = variance.add_(eps).rsqrt_()
    a, c = (
        v[..., None].expand(parts.shape[:3]).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
        for v in (inverse, -mean * inverse)
    )
    return torch.addcmul(c, x, a, out=torch.empty_like(x)), mean, inverse


def _column(value: Float[Tensor, "b c"], like: Tensor) -> Tensor:
    """(b, c) in the shape (b, c, 1, ...) and dtype of the other tensor."""
    return value.to(like.dtype).reshape(*value.shape, *(1,) * (like.ndim - 2))


class LocalNormAct(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, scale: Tensor, shift: Tensor, groups: int | None, eps: float
    ) -> Tensor:
        ctx.save_for_backward(x, scale, shift)
        ctx.groups, ctx.eps = groups, eps
        y, _, _ = _normalised(x, groups, eps)
        torch.addcmul(_column(shift, y), y, _column(scale, y), out=y)
        return torch.ops.aten.silu_(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift = ctx.saved_tensors
        groups = ctx.groups
        normal, mean, inverse = _normalised(x, groups, ctx.eps)
        buffer = torch.addcmul(_column(shift, x), normal, _column(scale, x))
        g = torch.ops.aten.silu_backward(grad, buffer)
        axes = tuple(range(2, x.ndim))
        grad_shift = g.sum(axes).to(scale.dtype)
        grad_scale = torch.mul(g, normal, out=buffer).sum(axes).to(scale.dtype)
        if not ctx.needs_input_grad[0]:
            return None, grad_scale, grad_shift, None, None
        if groups is None:
            g.mul_(_column(scale, x))
            ones = None
            if inverse.dtype != x.dtype and x.device.type == "cpu":
                # The CPU kernel of mixed dtypes asks for a weight in that of the statistics;
                # CUDA's reads any weight in the dtype of x, and refuses this one.
                ones = torch.ones(x.shape[1], device=x.device, dtype=inverse.dtype)
            grad_x, _, _ = torch.ops.aten.native_layer_norm_backward(
                g.movedim(1, -1),
                x.movedim(1, -1),
                (x.shape[1],),
                mean,
                inverse,
                ones,
                ones,
                [True, False, False],
            )
            return grad_x.movedim(-1, 1), grad_scale, grad_shift, None, None
        b, c = scale.shape
        count = c // groups * x[0, 0].numel()

        def group_mean(total: Tensor) -> Tensor:
            means = (scale * total).reshape(b, groups, -1).sum(2) / count
            return means.repeat_interleave(c // groups, dim=1)

        inverse = inverse.to(scale.dtype).repeat_interleave(c // groups, dim=1)
        offset = _column(-inverse * group_mean(grad_shift), x)
        slope = _column(-inverse * group_mean(grad_scale), x)
        torch.addcmul(offset, normal, slope, out=normal)
        torch.addcmul(normal, g, _column(inverse * scale, x), out=g)
        return g, grad_scale, grad_shift, None, None
