"""A group norm of a volume that is cut into slabs: affine, once its statistics are known."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from volumediff.memory.slabs import Planewise, Range
from volumediff.networks._norm_act import runs_fused
from volumediff.networks._norm_act_group import dense

__all__ = ["NormAffine", "neutral", "plus_scaled"]


@dataclass(eq=False, repr=False)
class NormAffine(Planewise):
    """silu(s x̂ + b) or s x̂ + b with statistics of the whole volume, as f(a x + c).

    `small` is (s, b). When called, it is given (a, c), which the executor forms of (s, b) and the
    statistics of its input, and the neutral statistics of `scaled`.
    """

    groups: int
    eps: float
    activated: bool
    fused: bool | None
    small: tuple[Tensor, ...]
    linear = False

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        (x,), (a, c, *neutral) = slabs, small
        if self.activated and runs_fused(x, self.fused):
            return _FusedAffineSilu.apply(x, a, c)
        if torch.is_grad_enabled():
            u = _Scaled.apply(x, a, c, *neutral)
            return F.silu(u) if self.activated else u
        u = scaled(x, a, c, *neutral)
        return F.silu(u, inplace=True) if self.activated else u


def neutral(like: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0 and variance 1 of channels, given coefficients (b, c)."""
    return torch.zeros_like(like[0]), torch.ones_like(like[0])


def scaled(x: Tensor, a: Tensor, c: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """a x + c per sample and channel, in the dtype of x, computed in that of a and c.

    A batch norm in evaluation mode is just that, in one pass and without a wide copy of x.

    Arguments:
        mean, variance: 0 and 1, see `neutral`
    """
    rows = [
        F.batch_norm(_row(x, i), mean, variance, a[i], c[i], training=False, eps=0.0)
        for i in range(len(x))
    ]
    return rows[0] if len(rows) == 1 else torch.cat(rows)


def _row(x: Tensor, i: int) -> Tensor:
    """One sample, with the strides of a fresh tensor if it is dense: the kernels tell the layout
    by them, also by those of axes of size 1. Planes of a larger tensor are read as they lie."""
    row = x[i : i + 1]
    layouts = (torch.contiguous_format, torch.channels_last_3d)
    return dense(row) if any(row.is_contiguous(memory_format=f) for f in layouts) else row


def plus_scaled(
    grad: Tensor | None, x: Tensor, a: Tensor, c: Tensor, *neutral: Tensor, fused: bool | None
) -> Tensor:
    """grad + a x + c, or a x + c alone; may change the gradient.

    Arguments:
        neutral: see `neutral`
        fused: whether Triton kernels compute it, see `norm_act`
    """
    if runs_fused(x, fused):
        from volumediff.networks._affine_triton import add_affine

        return add_affine(grad, x, a, c)
    moved = scaled(x, a, c, *neutral)
    return moved if grad is None else moved.add_(grad)


class _FusedAffineSilu(torch.autograd.Function):
    """silu(a x + c) by Triton kernels."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, a: Tensor, c: Tensor) -> Tensor:
        from volumediff.networks._affine_triton import affine_silu

        ctx.save_for_backward(x, a, c)
        return affine_silu(x, a, c)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        from volumediff.networks._affine_triton import affine_silu_gradient

        x, a, c = ctx.saved_tensors
        return affine_silu_gradient(x, grad, a, c)


class _Scaled(torch.autograd.Function):
    """`scaled`, with the gradients of all coefficients in one pass."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, a: Tensor, c: Tensor, mean: Tensor, variance: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, a, mean, variance)
        return scaled(x, a, c, mean, variance)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, a, mean, variance = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        rows = [
            torch.ops.aten.native_batch_norm_backward(
                _row(grad, i),
                _row(x, i),
                a[i],
                mean,
                variance,
                None,
                None,
                False,
                0.0,
                wanted,
            )
            for i in range(len(x))
        ]
        if len(rows) == 1:
            of_x, of_a, of_c = rows[0]
            return of_x, of_a[None], of_c[None], None, None
        of_x, of_a, of_c = zip(*rows, strict=True)
        return (
            torch.cat(of_x) if wanted[0] else None,
            torch.stack(of_a),
            torch.stack(of_c),
            None,
            None,
        )
