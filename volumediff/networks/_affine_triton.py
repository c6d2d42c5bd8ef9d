r"""A group norm of a volume in slabs, by Triton kernels: moments, coefficients and silu(a x + c).

The formulas are those of `volumediff.memory.norm_statistics`, where operations of torch compute
them elsewhere. A launch costs as much as a slab of a small volume takes: what belongs to a volume
is one launch here, in place of some twenty, and a slab is read and written once per pass.

Importing this module needs triton, see `_norm_act`.
"""

from collections.abc import Sequence

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from volumediff.networks import _affine_kernels as kernels
from volumediff.networks._norm_act_triton import (
    WARPS,
    ChunkPlan,
    GroupMoments,
    apply_silu,
    channels_last,
    like,
    total_of_chunks,
)

__all__ = [
    "add_affine",
    "affine_silu",
    "affine_silu_gradient",
    "merged_moments",
    "norm_affine",
    "norm_affine_gradient",
]

# Channels of a program that merges slabs.
MERGED = 128

Coefficients = Float[Tensor, "n c"]


def affine_silu(
    x: Float[Tensor, "n c *size"], a: Coefficients, c: Coefficients
) -> Float[Tensor, "n c *size"]:
    """silu(a x + c), with a and c in float32; for use where no gradient is recorded."""
    return apply_silu(channels_last(x), a.contiguous(), c.contiguous(), (None, None), 1, 1, 0.0)


def affine_silu_gradient(
    x: Float[Tensor, "n c *size"],
    grad: Float[Tensor, "n c *size"],
    a: Coefficients,
    c: Coefficients,
) -> tuple[Float[Tensor, "n c *size"], Coefficients, Coefficients]:
    """Gradients of x, a and c."""
    x, grad = channels_last(x), channels_last(grad)
    n, channels = a.shape
    out, plan = like(x), ChunkPlan(x)
    sums = a.new_empty((2, n * plan.chunks, channels))
    totals = a.new_empty((2, n, channels))
    with torch.cuda.device_of(x):
        kernels.affine_silu_gradient[plan.grid](
            *(x, x.stride(0), grad, grad.stride(0), out, out.stride(0)),
            *(a.contiguous(), c.contiguous(), *sums, *plan.chunk, channels, *plan.tile),
            num_warps=WARPS,
        )
        total_of_chunks(sums, totals, a, plan.chunks)
    return out.movedim(-1, 1), *totals


def add_affine(
    grad: Float[Tensor, "n c *size"] | None,
    x: Float[Tensor, "n c *size"],
    a: Coefficients,
    c: Coefficients,
) -> Float[Tensor, "n c *size"]:
    """grad + a x + c, or a x + c alone, as a new tensor."""
    x, grad = channels_last(x), None if grad is None else channels_last(grad)
    out, plan = like(x), ChunkPlan(x)
    with torch.cuda.device_of(x):
        kernels.add_affine[plan.grid](
            *(grad, 0 if grad is None else grad.stride(0), x, x.stride(0), out, out.stride(0)),
            *(a.contiguous(), c.contiguous(), *plan.chunk, x.shape[-1], *plan.tile),
            num_warps=WARPS,
        )
    return out.movedim(-1, 1)


def merged_moments(
    slabs: Sequence[GroupMoments], *, count: int
) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Mean and variance of each channel, in float64, from those of slabs.

    Arguments:
        slabs: `statistics` of single channels, of slabs of one size but perhaps the last
        count: voxels of all
    """
    n, channels = slabs[0].mean.shape
    together = torch.stack([t for slab in slabs for t in (slab.mean, slab.m2)])
    mean, variance = together.new_empty((2, n, channels), dtype=torch.float64)
    size = n * channels
    with torch.cuda.device_of(together):
        kernels.merge_slabs[(triton.cdiv(size, MERGED),)](
            together, mean, variance, count, slabs[0].count, size, len(slabs), MERGED
        )
    return mean, variance


def norm_affine(
    moments: tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]],
    scale: Coefficients,
    shift: Coefficients,
    *,
    groups: int,
    eps: float,
) -> tuple[Coefficients, Coefficients, Float[Tensor, "n g"], Float[Tensor, "n g"]]:
    """(a, c), and mean and 1/σ of the groups in float64."""
    n, channels = scale.shape
    a, c = scale.new_empty((2, n, channels))
    middle, inverse = moments[0].new_empty((2, n, groups))
    columns = triton.next_power_of_2(channels // groups)
    with torch.cuda.device_of(a):
        kernels.norm_affine[(n * groups,)](
            *(*(m.contiguous() for m in moments), scale.contiguous(), shift.contiguous()),
            *(a, c, middle, inverse, eps, channels, groups, columns),
        )
    return a, c, middle, inverse


def norm_affine_gradient(
    of_a: Coefficients,
    of_c: Coefficients,
    scale: Coefficients,
    middle: Float[Tensor, "n g"],
    inverse: Float[Tensor, "n g"],
    *,
    count: int,
) -> tuple[Coefficients, Coefficients, Coefficients]:
    """Gradient of the scale, and (P, Q): that of x through its moments is P + Q x."""
    n, channels = scale.shape
    groups = middle.shape[1]
    of_scale, offset, slope = scale.new_empty((3, n, channels))
    columns = triton.next_power_of_2(channels // groups)
    with torch.cuda.device_of(scale):
        kernels.norm_affine_gradient[(n * groups,)](
            *(of_a.contiguous(), of_c.contiguous(), scale.contiguous(), middle, inverse),
            *(of_scale, offset, slope, count, channels, groups, columns),
        )
    return of_scale, offset, slope
