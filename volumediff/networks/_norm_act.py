r"""silu(s x̂ + b) with x̂ the normalised input: one function that stores nothing but its input.

Written with separate operations, normalisation, FiLM and activation each keep a tensor of the size
of the volume for the backward pass. Here the backward pass forms them again from x, in two reused
buffers. With u = s x̂ + b, y = silu(u), g = ∂L/∂u and means over the set that is normalised
together,

.. math:: \frac{\partial L}{\partial x} = \frac{1}{\sigma}
          \left(s g - \langle s g \rangle - \hat x\, \langle s g \hat x \rangle\right)

For a group norm the means follow from the gradients of s and b, which are sums over voxels.

This eager form is the reference. `_norm_act_triton` computes the same, to rounding, in fewer
passes over memory, where a caller asks for it. Nothing here measures and chooses by itself: a
choice by timing may differ between two sessions of one run, and a resumed run would lose its bits.
"""

import importlib.util
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.overrides import handle_torch_function, has_torch_function_unary

__all__ = ["NormKind", "as_images", "as_stack", "dense", "fused_refusal", "norm_act"]

NormKind = Literal["group", "slice", "voxel"]
"""What is normalised together: see `volumediff.networks._layers.Norm`."""


def norm_act(
    x: Float[Tensor, "b c d h w"],
    scale: Float[Tensor, "b c"],
    shift: Float[Tensor, "b c"],
    *,
    kind: NormKind,
    groups: int,
    eps: float,
    fused: bool = False,
) -> Float[Tensor, "b c d h w"]:
    """silu(scale * normalised x + shift).

    Arguments:
        scale, shift: per sample and channel, in float32 or float64
        kind: what is normalised together
        groups: channel groups of the statistics; `voxel` takes all channels together
        fused: on a GPU, through the Triton kernels; they copy x where its channels are not last

    Raises:
        ValueError: x is on a GPU and the fused kernels cannot take it
    """
    if has_torch_function_unary(x):
        named = {"kind": kind, "groups": groups, "eps": eps, "fused": fused}
        return handle_torch_function(norm_act, (x,), x, scale, shift, **named)
    apply = _fused(x) if fused else _NormAct.apply
    if kind == "voxel":
        return apply(x, scale, shift, None, eps)
    if kind == "group":
        return apply(x, scale, shift, groups, eps)
    slices = x.shape[2]
    scale, shift = (v.repeat_interleave(slices, dim=0) for v in (scale, shift))
    return as_stack(apply(as_images(x), scale, shift, groups, eps), slices)


def fused_refusal(x: Tensor) -> str:
    """Why the fused kernels cannot take x, or an empty string."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if x.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return "its kernels take float32, bfloat16 and float16"
    from volumediff.networks._norm_act_triton import INTERPRETED

    if x.device.type != "cuda" and not INTERPRETED:
        return "its kernels need a GPU"
    return ""


def _fused(x: Tensor) -> Callable[..., Tensor]:
    """The fused function, or the reference where there are no data or no GPU."""
    if type(x) not in (Tensor, nn.Parameter) or x.is_meta or torch.compiler.is_compiling():
        return _NormAct.apply
    reason = fused_refusal(x)
    # What was trained on a GPU must run on a CPU as well.
    if reason and x.device.type == "cpu":
        return _NormAct.apply
    if reason:
        dtype = str(x.dtype).removeprefix("torch.")
        raise ValueError(
            f"fused normalisation cannot run on {x.device.type} with {dtype}: {reason}; "
            "set 'fused' to false"
        )
    from volumediff.networks._norm_act_triton import FusedNormAct

    return FusedNormAct.apply


def as_images(x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b*d c h w"]:
    """A volume as a batch of its slices; a view when channels are last in memory."""
    return x.transpose(1, 2).flatten(0, 1)


def as_stack(y: Float[Tensor, "n c h w"], slices: int) -> Float[Tensor, "b c d h w"]:
    """The inverse of `as_images`."""
    return y.unflatten(0, (-1, slices)).transpose(1, 2)


def _normalised(
    x: Float[Tensor, "b c *size"], groups: int | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """x̂, mean and 1/σ; the kernels accumulate in float32 and keep the memory layout."""
    channels = x.shape[1]
    ones = zeros = None
    if x.device.type == "cpu" and x.dtype == torch.bfloat16:
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


def dense(x: Float[Tensor, "b c *size"]) -> Float[Tensor, "b c *size"]:
    """x as `torch.native_group_norm` takes it: dense, channels last if they are, else planar.

    An axis of size 1 may have any stride, as in a slab or a single slice of a volume, and the
    kernel tells the layout by the strides: here they become those of a fresh tensor.
    """
    layout = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    if not x.is_contiguous(memory_format=layout):
        layout, x = torch.contiguous_format, x.contiguous()
    fresh = torch.empty(x.shape, device="meta", memory_format=layout)
    return x.as_strided(x.shape, fresh.stride())


def _from_moments(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """As `_normalised`, on a GPU, where torch's own kernel refuses volumes with channels last.

    Statistics and coefficients are in float32 or wider, without a wide copy of x there.
    """
    parts = x.unflatten(1, (groups, -1))
    axes, dtype = tuple(range(2, parts.ndim)), torch.promote_types(x.dtype, torch.float32)
    if x.dtype == dtype:
        variance, mean = torch.var_mean(parts, axes, correction=0)
    else:
        mean = parts.mean(axes, dtype=dtype)
        # Around zero: the rounding of float32 stays below that of voxels in half precision.
        norm = torch.linalg.vector_norm(parts, 2, axes, dtype=dtype).double()
        square = norm.square() / parts[0, 0].numel()
        variance = (square - mean.double().square()).clamp_min(0).to(dtype)
    inverse = (variance + eps).rsqrt()
    a, c = (
        v.repeat_interleave(parts.shape[2], dim=1).reshape(*x.shape[:2], *(1,) * (x.ndim - 2))
        for v in (inverse, -mean * inverse)
    )
    return torch.addcmul(c, x, a, out=torch.empty_like(x)), mean, inverse


def _column(value: Float[Tensor, "b c"], like: Tensor) -> Tensor:
    """(b, c) in the shape (b, c, 1, ...) and dtype of the other tensor."""
    return value.to(like.dtype).reshape(*value.shape, *(1,) * (like.ndim - 2))


class _NormAct(torch.autograd.Function):
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
