r"""silu(s x̂ + b) as Triton kernels for data with channels last in memory.

What `_norm_act` computes with several elementwise kernels takes here two reads and one write of
the data forward, and two reads of data and gradient and one write backward. With u = s x̂ + b,
g = ∂L/∂u and means over the set that is normalised together,

.. math:: \frac{\partial L}{\partial x} = \frac{1}{\sigma}
          \left(s g - \langle s g \rangle - \hat x\, \langle s g \hat x \rangle\right), \quad
          \frac{\partial L}{\partial s} = \sum g \hat x, \quad
          \frac{\partial L}{\partial b} = \sum g

The backward pass keeps x and the moments of every group, and forms x̂ and u again in registers.

Every lane of a tile carries a running mean and sum of squared deviations (Welford). Lanes, chunks
and the channels of a group are merged by Chan's formula, M2 = Σ (M2_i + n_i (mean_i - mean)²),
which loses nothing to a mean that is large against the deviation. Sums run in an order that
depends on the shape alone, without atomic operations: equal inputs give equal bits.

Importing this module needs triton; `_norm_act` does so where the kernels are asked for.

References:
    Chan, Golub, LeVeque (1983), Algorithms for computing the sample variance, equation (2.1)
"""

from typing import NamedTuple

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from volumediff.networks import _norm_act_kernels as kernels

__all__ = [
    "INTERPRETED",
    "WARPS",
    "WIDTH",
    "ChunkPlan",
    "FusedNormAct",
    "GroupMoments",
    "apply_silu",
    "channels_last",
    "like",
    "merge_tile",
    "statistics",
    "total_of_chunks",
]

INTERPRETED = bool(triton.knobs.runtime.interpret)
"""Whether the kernels were made for triton's interpreter, which runs them on the CPU."""

# 8 elements in each of 256 threads: one read of 16 bytes in bfloat16. Compiled for compute
# capability 9.0 the kernels take up to 106 registers; with 16 elements they take up to 185, which
# leaves one block per multiprocessor.
TILE, WARPS = 2048, 8
# About four programs on each of 500 slots of a large GPU, but eight tiles each where there are
# fewer: then the partial results of a chunk are a few per cent of the chunk.
PROGRAMS, TILES = 2048, 8
# Channels of a tile; more are spread over the second axis of the grid.
COLUMNS = 256
# Channels per program where partial sums belong to no group.
WIDTH = 16


class GroupMoments(NamedTuple):
    """Count, mean and sum of squared deviations from the mean, per sample and group."""

    count: int
    mean: Float[Tensor, "n g"]
    m2: Float[Tensor, "n g"]


def statistics(x: Float[Tensor, "n c *size"], groups: int) -> GroupMoments:
    """Moments of each group of channels over the voxels of x.

    Those of a volume follow from those of its slabs by Chan's formula. A slab that was cut from
    a channels-last volume along its first axis is read in place.
    """
    x = channels_last(x)
    n, channels = len(x), x.shape[-1]
    plan = ChunkPlan(x)
    partial = x.new_empty((2, n * plan.chunks, channels), dtype=torch.float32)
    merged = x.new_empty((2, n, groups), dtype=torch.float32)
    width = channels // groups
    count = width * plan.voxels
    with torch.cuda.device_of(x):
        kernels.moments[plan.grid](
            x, x.stride(0), *partial, *plan.chunk, channels, *plan.tile, num_warps=WARPS
        )
        kernels.merge_moments[(n * groups,)](
            *partial, *merged, *plan.chunk, 1 / count, channels, groups, *merge_tile(width)
        )
    return GroupMoments(count, *merged)


class FusedNormAct(torch.autograd.Function):
    """silu(scale x̂ + shift); without groups, x̂ is over the channels of a voxel.

    Takes data (n, c, ...) in float32, float16 or bfloat16, scale and shift (n, c) in float32. Data
    with channels first is copied.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, scale: Tensor, shift: Tensor, groups: int | None, eps: float
    ) -> Tensor:
        ctx.groups, ctx.eps = groups, eps
        scale, shift = scale.contiguous(), shift.contiguous()
        if groups is None:
            ctx.save_for_backward(x, scale, shift)
            return _voxel_apply(channels_last(x), scale, shift, eps)
        moments = statistics(x, groups)
        ctx.count = moments.count
        ctx.save_for_backward(x, scale, shift, moments.mean, moments.m2)
        return apply_silu(channels_last(x), scale, shift, moments[1:], moments.count, groups, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, shift, *moments = ctx.saved_tensors
        x, grad = channels_last(x), channels_last(grad)
        if ctx.groups is None:
            grad_x, grad_scale, grad_shift = _voxel_gradient(x, grad, scale, shift, ctx.eps)
        else:
            grad_x, grad_scale, grad_shift = _gradient(
                x,
                grad,
                scale,
                shift,
                GroupMoments(ctx.count, *moments),
                ctx.groups,
                ctx.eps,
                with_x=ctx.needs_input_grad[0],
            )
        return grad_x, grad_scale, grad_shift, None, None


class ChunkPlan:
    """How voxels and channels are cut; by their numbers alone, so that sums keep their order.

    Arguments:
        x: data with channels last
        whole: a tile takes all channels
    """

    def __init__(self, x: Float[Tensor, "n *size c"], *, whole: bool = False) -> None:
        n, channels = len(x), x.shape[-1]
        self.voxels = x[0].numel() // channels
        columns = triton.next_power_of_2(channels)
        columns = columns if whole else min(columns, COLUMNS)
        rows = max(1, TILE // columns)
        tiles = triton.cdiv(self.voxels, rows)
        size = rows * max(TILES, triton.cdiv(tiles, triton.cdiv(PROGRAMS, n)))
        self.chunks = triton.cdiv(self.voxels, size)
        self.chunk = (self.voxels, size, self.chunks)
        self.tile = (rows, columns)
        self.grid = (n * self.chunks, triton.cdiv(channels, columns))


def merge_tile(width: int) -> tuple[int, int]:
    """Chunks and channels that a merge takes at a time."""
    columns = triton.next_power_of_2(width)
    return max(1, TILE // 2 // columns), columns


def total_of_chunks(
    sums: Float[Tensor, "two nm c"],
    totals: Float[Tensor, "two n c"],
    scale: Float[Tensor, "n c"],
    chunks: int,
) -> None:
    """Adds both sums of all chunks of a sample, where no means of groups are asked for."""
    n, channels = scale.shape
    kernels.merge_sums[(n, triton.cdiv(channels, WIDTH))](
        *(*sums, scale, *totals, None, None, chunks, 1.0),
        *(channels, WIDTH, *merge_tile(WIDTH)),
    )


def channels_last(x: Float[Tensor, "n c *size"]) -> Float[Tensor, "n *size c"]:
    """A view where the voxels of a sample are dense in memory, else a copy."""
    x = x.movedim(1, -1)
    return x if x[0].is_contiguous() else x.contiguous()


def like(x: Float[Tensor, "n *size c"]) -> Float[Tensor, "n *size c"]:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def apply_silu(
    x: Float[Tensor, "n *size c"],
    scale: Float[Tensor, "n c"],
    shift: Float[Tensor, "n c"],
    moments: tuple[Tensor | None, Tensor | None],
    count: int,
    groups: int,
    eps: float,
) -> Float[Tensor, "n c *size"]:
    y, plan = like(x), ChunkPlan(x)
    with torch.cuda.device_of(x):
        kernels.apply[plan.grid](
            *(x, x.stride(0), y, y.stride(0), scale, shift, *moments),
            *(*plan.chunk, 1 / count, eps, x.shape[-1], groups, *plan.tile),
            num_warps=WARPS,
        )
    return y.movedim(-1, 1)


def _voxel_apply(
    x: Float[Tensor, "n *size c"],
    scale: Float[Tensor, "n c"],
    shift: Float[Tensor, "n c"],
    eps: float,
) -> Float[Tensor, "n c *size"]:
    y, plan = like(x), ChunkPlan(x, whole=True)
    with torch.cuda.device_of(x):
        kernels.voxel_apply[plan.grid](
            *(x, x.stride(0), y, y.stride(0), scale, shift),
            *(*plan.chunk, eps, x.shape[-1], *plan.tile),
            num_warps=WARPS,
        )
    return y.movedim(-1, 1)


def _gradient(
    x: Float[Tensor, "n *size c"],
    grad: Float[Tensor, "n *size c"],
    scale: Float[Tensor, "n c"],
    shift: Float[Tensor, "n c"],
    moments: GroupMoments,
    groups: int,
    eps: float,
    *,
    with_x: bool,
) -> tuple[Float[Tensor, "n c *size"] | None, Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Gradients of x, scale and shift under group statistics."""
    n, channels = scale.shape
    plan, inverse = ChunkPlan(x), 1 / moments.count
    inputs = (x, x.stride(0), grad, grad.stride(0))
    film = (scale, shift, moments.mean, moments.m2)
    cut = (*plan.chunk, inverse, eps, channels, groups, *plan.tile)
    sums = scale.new_empty((2, n * plan.chunks, channels))
    totals, means = scale.new_empty((2, n, channels)), scale.new_empty((2, n, groups))
    width = channels // groups
    out = like(x) if with_x else None
    with torch.cuda.device_of(x):
        kernels.gradient_sums[plan.grid](*inputs, *film, *sums, *cut, num_warps=WARPS)
        kernels.merge_sums[(n, groups)](
            *(*sums, scale, *totals, *means, plan.chunks, inverse),
            *(channels, width, *merge_tile(width)),
        )
        if out is None:
            return None, *totals
        kernels.gradient[plan.grid](
            *inputs, out, out.stride(0), *film, *means, *cut, num_warps=WARPS
        )
    return out.movedim(-1, 1), *totals


def _voxel_gradient(
    x: Float[Tensor, "n *size c"],
    grad: Float[Tensor, "n *size c"],
    scale: Float[Tensor, "n c"],
    shift: Float[Tensor, "n c"],
    eps: float,
) -> tuple[Float[Tensor, "n c *size"], Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Gradients of x, scale and shift under statistics of each voxel."""
    n, channels = scale.shape
    out, plan = like(x), ChunkPlan(x, whole=True)
    sums = scale.new_empty((2, n * plan.chunks, channels))
    totals = scale.new_empty((2, n, channels))
    with torch.cuda.device_of(x):
        kernels.voxel_gradient[plan.grid](
            *(x, x.stride(0), grad, grad.stride(0), out, out.stride(0), scale, shift, *sums),
            *(*plan.chunk, eps, channels, *plan.tile),
            num_warps=WARPS,
        )
        total_of_chunks(sums, totals, scale, plan.chunks)
    return out.movedim(-1, 1), *totals
