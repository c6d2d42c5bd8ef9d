"""The Triton kernels of `_affine_triton`; data and cuts are those of `_norm_act_kernels`."""

from typing import no_type_check

import triton
import triton.language as tl

from volumediff.networks._norm_act_kernels import _begin, _chunk, _read, _rows, _slope, _tile

__all__ = []


@triton.jit
@no_type_check
def affine_silu_gradient(
    x, stride, grad, grad_stride, out, out_stride, a, c, sum_gx, sum_g, voxels, chunk, chunks,
    C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The gradient of x through silu(a x + c), and Σ g x and Σ g per channel of a chunk."""
    sample, start, stop = _chunk(voxels, chunk, chunks)
    rows, columns, inside, at = _tile(C, ROWS, COLS)
    slope, offset = _rows(a, c, sample * C + columns, inside)
    x = _begin(x, stride, sample, start, C)
    grad = _begin(grad, grad_stride, sample, start, C)
    out = _begin(out, out_stride, sample, start, C)
    total_gx = tl.zeros([ROWS, COLS], tl.float32)
    total_g = tl.zeros([ROWS, COLS], tl.float32)
    for v in range(start, stop, ROWS):
        valid = (v + rows < stop) & inside[None, :]
        value = _read(x, at, valid)
        # Outside, the gradient is read as zero.
        g = _read(grad, at, valid) * _slope(value * slope + offset)
        total_gx += g * value
        total_g += g
        tl.store(out + at, (slope * g).to(out.dtype.element_ty), mask=valid)
        x += ROWS * C
        grad += ROWS * C
        out += ROWS * C
    row = tl.program_id(0) * C + columns
    tl.store(sum_gx + row, tl.sum(total_gx, 0), mask=inside)
    tl.store(sum_g + row, tl.sum(total_g, 0), mask=inside)


@triton.jit
@no_type_check
def add_affine(
    grad, grad_stride, x, stride, out, out_stride, a, c, voxels, chunk, chunks,
    C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """a x + c, added to a gradient where there is one."""
    sample, start, stop = _chunk(voxels, chunk, chunks)
    rows, columns, inside, at = _tile(C, ROWS, COLS)
    slope, offset = _rows(a, c, sample * C + columns, inside)
    x = _begin(x, stride, sample, start, C)
    out = _begin(out, out_stride, sample, start, C)
    if grad is not None:
        grad = _begin(grad, grad_stride, sample, start, C)
    for v in range(start, stop, ROWS):
        valid = (v + rows < stop) & inside[None, :]
        value = _read(x, at, valid) * slope + offset
        if grad is not None:
            value += _read(grad, at, valid)
            grad += ROWS * C
        tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)
        x += ROWS * C
        out += ROWS * C


@triton.jit
@no_type_check
def merge_slabs(slabs, mean, variance, count, slab, size, SLABS: tl.constexpr, COLS: tl.constexpr):
    """Mean and variance of channels, in float64, from mean and M2 of slabs with `slab` voxels.

    The last slab has what is left of `count`; `size` is the number of samples times channels.
    """
    at = tl.program_id(0) * COLS + tl.arange(0, COLS)
    inside = at < size
    total = tl.zeros([COLS], tl.float64)
    for i in range(SLABS):
        number = tl.minimum(count - i * slab, slab)
        total += number * tl.load(slabs + 2 * i * size + at, mask=inside, other=0.0).to(tl.float64)
    centre = total / count
    total = tl.zeros([COLS], tl.float64)
    for i in range(SLABS):
        number = tl.minimum(count - i * slab, slab)
        here = slabs + 2 * i * size + at
        away = tl.load(here, mask=inside, other=0.0).to(tl.float64) - centre
        inner = tl.load(here + size, mask=inside, other=0.0).to(tl.float64)
        total += inner + number * away * away
    tl.store(mean + at, centre, mask=inside)
    tl.store(variance + at, total / count, mask=inside)


@triton.jit
@no_type_check
def _group(C: tl.constexpr, GROUPS: tl.constexpr, COLS: tl.constexpr):
    """Of the group of this program: places of its channels, and which of them exist."""
    within = tl.arange(0, COLS)
    return tl.program_id(0) * (C // GROUPS) + within, within < C // GROUPS


@triton.jit
@no_type_check
def norm_affine(
    mean, variance, scale, shift, a, c, middle, inverse, eps,
    C: tl.constexpr, GROUPS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """a and c with a x + c = scale x̂ + shift, from moments of channels, for one group."""
    at, inside = _group(C, GROUPS, COLS)
    width = C // GROUPS
    means = tl.load(mean + at, mask=inside, other=0.0)
    centre = tl.sum(means, 0) / width
    away = tl.where(inside, means - centre, 0.0)
    spread = tl.load(variance + at, mask=inside, other=0.0) + away * away
    root = 1.0 / tl.sqrt(tl.sum(spread, 0) / width + eps)
    slope = tl.load(scale + at, mask=inside, other=0.0) * root
    offset = tl.load(shift + at, mask=inside, other=0.0) - slope * centre
    tl.store(a + at, slope.to(tl.float32), mask=inside)
    tl.store(c + at, offset.to(tl.float32), mask=inside)
    tl.store(middle + tl.program_id(0), centre)
    tl.store(inverse + tl.program_id(0), root)


@triton.jit
@no_type_check
def norm_affine_gradient(
    of_a, of_c, scale, middle, inverse, of_scale, offset, slope, count,
    C: tl.constexpr, GROUPS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """What gradients of a and c say of scale, and P and Q of the gradient P + Q x of x."""
    at, inside = _group(C, GROUPS, COLS)
    width = C // GROUPS
    centre = tl.load(middle + tl.program_id(0))
    root = tl.load(inverse + tl.program_id(0))
    s = tl.load(scale + at, mask=inside, other=0.0).to(tl.float64)
    level = tl.load(of_c + at, mask=inside, other=0.0).to(tl.float64)
    along = tl.load(of_a + at, mask=inside, other=0.0).to(tl.float64) - centre * level
    tl.store(of_scale + at, (root * along).to(tl.float32), mask=inside)
    q = -tl.sum(s * along, 0) / width * root * root * root / count
    p = -tl.sum(s * level, 0) / width * root / count - centre * q
    zero = tl.zeros([COLS], tl.float64)
    tl.store(slope + at, (zero + q).to(tl.float32), mask=inside)
    tl.store(offset + at, (zero + p).to(tl.float32), mask=inside)
