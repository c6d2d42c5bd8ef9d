"""The Triton kernels of `_norm_act_triton`.

Data x has shape (samples, voxels, C): channels last, dense voxels, any stride between samples.
Voxels are cut into chunks, one per program and sample; a program walks over its chunk in tiles of
ROWS voxels and COLS channels. Offsets of samples and chunks are 64-bit.

`no_type_check` keeps the run-time checks of the test suite away: a kernel has no Python types.
Arguments that may be 1 become constants in a compiled kernel, so that no method of them is called.
"""

from typing import no_type_check

import triton
import triton.language as tl

__all__ = []


@triton.jit
@no_type_check
def _chunk(voxels, chunk, chunks):
    """Sample, first voxel and end of the chunk of this program."""
    program = tl.program_id(0)
    start = program % chunks * chunk
    return program // chunks, start, tl.minimum(start + chunk, voxels)


@triton.jit
@no_type_check
def _tile(C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr):
    """Rows, channels, which of them exist, and offsets of the tile of this program."""
    rows = tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLS + tl.arange(0, COLS)
    return rows[:, None], columns, columns < C, rows[:, None] * C + columns[None, :]


@triton.jit
@no_type_check
def _begin(x, stride, sample, start, C: tl.constexpr):
    """Where a chunk of a sample begins."""
    return x + sample.to(tl.int64) * stride + start.to(tl.int64) * C


@triton.jit
@no_type_check
def _rows(first, second, at, inside):
    """Two values per channel."""
    first = tl.load(first + at, mask=inside, other=0.0)
    second = tl.load(second + at, mask=inside, other=0.0)
    return first[None, :], second[None, :]


@triton.jit
@no_type_check
def _read(x, at, valid):
    return tl.load(x + at, mask=valid, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def moments(
    x, stride, mean, m2, voxels, chunk, chunks,
    C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Moments per channel of a chunk."""
    sample, start, stop = _chunk(voxels, chunk, chunks)
    rows, columns, inside, at = _tile(C, ROWS, COLS)
    x = _begin(x, stride, sample, start, C)
    lane_mean = tl.zeros([ROWS, COLS], tl.float32)
    lane_m2 = tl.zeros([ROWS, COLS], tl.float32)
    seen = 0.0
    for v in range(start, stop, ROWS):
        valid = (v + rows < stop) & inside[None, :]
        value = _read(x, at, valid)
        seen += 1.0
        delta = tl.where(valid, value - lane_mean, 0.0)
        lane_mean += delta / seen
        lane_m2 += delta * (value - lane_mean)
        x += ROWS * C
    # In the last tile only the first rows hold voxels.
    count = ((stop - start - rows + ROWS - 1) // ROWS).to(tl.float32)
    centre = tl.sum(lane_mean * count, 0) / (stop - start).to(tl.float32)
    away = lane_mean - centre[None, :]
    row = tl.program_id(0) * C + columns
    tl.store(mean + row, centre, mask=inside)
    tl.store(m2 + row, tl.sum(lane_m2 + count * away * away, 0), mask=inside)


@triton.jit
@no_type_check
def merge_moments(
    mean, m2, group_mean, group_m2, voxels, chunk, chunks, inverse_count,
    C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Moments of a group from those of its channels and chunks."""
    program = tl.program_id(0)
    width: tl.constexpr = C // GROUPS
    rows = tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, COLS)[None, :]
    at = program // GROUPS * chunks * C + program % GROUPS * width + rows * C + columns
    total = tl.zeros([ROWS, COLS], tl.float32)
    for k in range(0, chunks, ROWS):
        valid = (k + rows < chunks) & (columns < width)
        count = tl.minimum(voxels - (k + rows) * chunk, chunk).to(tl.float32)
        total += tl.where(valid, count * tl.load(mean + at + k * C, mask=valid, other=0.0), 0.0)
    centre = tl.sum(tl.sum(total, 1), 0) * inverse_count
    total = tl.zeros([ROWS, COLS], tl.float32)
    for k in range(0, chunks, ROWS):
        valid = (k + rows < chunks) & (columns < width)
        count = tl.minimum(voxels - (k + rows) * chunk, chunk).to(tl.float32)
        away = tl.load(mean + at + k * C, mask=valid, other=0.0) - centre
        inner = tl.load(m2 + at + k * C, mask=valid, other=0.0)
        total += tl.where(valid, inner + count * away * away, 0.0)
    tl.store(group_mean + program, centre)
    tl.store(group_m2 + program, tl.sum(tl.sum(total, 1), 0))


@triton.jit
@no_type_check
def _group_moments(
    mean, m2, sample, columns, inverse_count, eps, C: tl.constexpr, GROUPS: tl.constexpr
):
    """Mean and 1/σ of the group of each channel."""
    group = sample * GROUPS + columns // (C // GROUPS)
    centre, spread = _rows(mean, m2, group, columns < C)
    return centre, tl.rsqrt(spread * inverse_count + eps)


@triton.jit
@no_type_check
def _slope(u):
    """The derivative of silu."""
    gate = tl.sigmoid(u)
    return gate * (1.0 + u * (1.0 - gate))


@triton.jit
@no_type_check
def apply(
    x, stride, y, y_stride, scale, shift, mean, m2, voxels, chunk, chunks, inverse_count, eps,
    C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """silu(scale x̂ + shift), or of x itself where there are no moments."""
    sample, start, stop = _chunk(voxels, chunk, chunks)
    rows, columns, inside, at = _tile(C, ROWS, COLS)
    a, b = _rows(scale, shift, sample * C + columns, inside)
    if mean is not None:
        centre, inverse = _group_moments(mean, m2, sample, columns, inverse_count, eps, C, GROUPS)
        a = a * inverse
    x = _begin(x, stride, sample, start, C)
    y = _begin(y, y_stride, sample, start, C)
    for v in range(start, stop, ROWS):
        valid = (v + rows < stop) & inside[None, :]
        value = _read(x, at, valid)
        if mean is not None:
            value -= centre
        u = value * a + b
        tl.store(y + at, (u * tl.sigmoid(u)).to(y.dtype.element_ty), mask=valid)
        x += ROWS * C
        y += ROWS * C


@triton.jit
@no_type_check
def gradient_sums(
    x, stride, grad, grad_stride, scale, shift, mean, m2, sum_gx, sum_g,
    voxels, chunk, chunks, inverse_count, eps,
    C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Σ g x̂ and Σ g per channel of a chunk."""
    sample, start, stop = _chunk(voxels, chunk, chunks)
    rows, columns, inside, at = _tile(C, ROWS, COLS)
    a, b = _rows(scale, shift, sample * C + columns, inside)
    centre, inverse = _group_moments(mean, m2, sample, columns, inverse_count, eps, C, GROUPS)
    x = _begin(x, stride, sample, start, C)
    grad = _begin(grad, grad_stride, sample, start, C)
    total_gx = tl.zeros([ROWS, COLS], tl.float32)
    total_g = tl.zeros([ROWS, COLS], tl.float32)
    for v in range(start, stop, ROWS):
        valid = (v + rows < stop) & inside[None, :]
        normal = (_read(x, at, valid) - centre) * inverse
        # Outside, the gradient is read as zero.
        g = _read(grad, at, valid) * _slope(normal * a + b)
        total_gx += g * normal
        total_g += g
        x += ROWS * C
        grad += ROWS * C
    row = tl.program_id(0) * C + columns
    tl.store(sum_gx + row, tl.sum(total_gx, 0), mask=inside)
    tl.store(sum_g + row, tl.sum(total_g, 0), mask=inside)


@triton.jit
@no_type_check
def merge_sums(
    sum_gx, sum_g, scale, grad_scale, grad_shift, mean_gx, mean_g, chunks, inverse_count,
    C: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Sums over chunks for `WIDTH` channels, and their means over the group where asked for."""
    sample, group = tl.program_id(0), tl.program_id(1)
    rows = tl.arange(0, ROWS)[:, None]
    within = tl.arange(0, COLS)
    channel = group * WIDTH + within
    inside = (within < WIDTH) & (channel < C)
    at = sample * chunks * C + rows * C + channel[None, :]
    total_gx = tl.zeros([ROWS, COLS], tl.float32)
    total_g = tl.zeros([ROWS, COLS], tl.float32)
    for k in range(0, chunks, ROWS):
        valid = (k + rows < chunks) & inside[None, :]
        total_gx += tl.load(sum_gx + at + k * C, mask=valid, other=0.0)
        total_g += tl.load(sum_g + at + k * C, mask=valid, other=0.0)
    channel_gx, channel_g = tl.sum(total_gx, 0), tl.sum(total_g, 0)
    out = sample * C + channel
    tl.store(grad_scale + out, channel_gx, mask=inside)
    tl.store(grad_shift + out, channel_g, mask=inside)
    if mean_gx is not None:
        a = tl.load(scale + out, mask=inside, other=0.0)
        out = sample * (C // WIDTH) + group
        tl.store(mean_gx + out, tl.sum(a * channel_gx, 0) * inverse_count)
        tl.store(mean_g + out, tl.sum(a * channel_g, 0) * inverse_count)


@triton.jit
@no_type_check
def gradient(
    x, stride, grad, grad_stride, out, out_stride, scale, shift, mean, m2, mean_gx, mean_g,
    voxels, chunk, chunks, inverse_count, eps,
    C: tl.constexpr, GROUPS: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The gradient of x."""
    sample, start, stop = _chunk(voxels, chunk, chunks)
    rows, columns, inside, at = _tile(C, ROWS, COLS)
    a, b = _rows(scale, shift, sample * C + columns, inside)
    centre, inverse = _group_moments(mean, m2, sample, columns, inverse_count, eps, C, GROUPS)
    group = sample * GROUPS + columns // (C // GROUPS)
    along, constant = _rows(mean_gx, mean_g, group, inside)
    x = _begin(x, stride, sample, start, C)
    grad = _begin(grad, grad_stride, sample, start, C)
    out = _begin(out, out_stride, sample, start, C)
    for v in range(start, stop, ROWS):
        valid = (v + rows < stop) & inside[None, :]
        normal = (_read(x, at, valid) - centre) * inverse
        g = _read(grad, at, valid) * _slope(normal * a + b)
        value = inverse * (a * g - constant - normal * along)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)
        x += ROWS * C
        grad += ROWS * C
        out += ROWS * C


@triton.jit
@no_type_check
def _voxel_normal(value, inside, eps, C: tl.constexpr):
    """x̂ and 1/σ over the channels of each voxel."""
    centre = tl.sum(value, 1) / C
    value = tl.where(inside[None, :], value - centre[:, None], 0.0)
    inverse = tl.rsqrt(tl.sum(value * value, 1) / C + eps)[:, None]
    return value * inverse, inverse


@triton.jit
@no_type_check
def voxel_apply(
    x, stride, y, y_stride, scale, shift, voxels, chunk, chunks, eps,
    C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """silu(scale x̂ + shift) with x̂ over the channels of a voxel; a tile has all of them."""
    sample, start, stop = _chunk(voxels, chunk, chunks)
    rows, columns, inside, at = _tile(C, ROWS, COLS)
    a, b = _rows(scale, shift, sample * C + columns, inside)
    x = _begin(x, stride, sample, start, C)
    y = _begin(y, y_stride, sample, start, C)
    for v in range(start, stop, ROWS):
        valid = (v + rows < stop) & inside[None, :]
        value = _read(x, at, valid)
        normal, _ = _voxel_normal(value, inside, eps, C)
        u = normal * a + b
        tl.store(y + at, (u * tl.sigmoid(u)).to(y.dtype.element_ty), mask=valid)
        x += ROWS * C
        y += ROWS * C


@triton.jit
@no_type_check
def voxel_gradient(
    x, stride, grad, grad_stride, out, out_stride, scale, shift, sum_gx, sum_g,
    voxels, chunk, chunks, eps,
    C: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """The gradient of x, and Σ g x̂ and Σ g per channel of a chunk."""
    sample, start, stop = _chunk(voxels, chunk, chunks)
    rows, columns, inside, at = _tile(C, ROWS, COLS)
    a, b = _rows(scale, shift, sample * C + columns, inside)
    x = _begin(x, stride, sample, start, C)
    grad = _begin(grad, grad_stride, sample, start, C)
    out = _begin(out, out_stride, sample, start, C)
    total_gx = tl.zeros([ROWS, COLS], tl.float32)
    total_g = tl.zeros([ROWS, COLS], tl.float32)
    for v in range(start, stop, ROWS):
        valid = (v + rows < stop) & inside[None, :]
        value = _read(x, at, valid)
        normal, inverse = _voxel_normal(value, inside, eps, C)
        g = _read(grad, at, valid) * _slope(normal * a + b)
        total_gx += g * normal
        total_g += g
        g *= a
        constant = (tl.sum(g, 1) / C)[:, None]
        along = (tl.sum(g * normal, 1) / C)[:, None]
        value = inverse * (g - constant - normal * along)
        tl.store(out + at, value.to(out.dtype.element_ty), mask=valid)
        x += ROWS * C
        grad += ROWS * C
        out += ROWS * C
    row = tl.program_id(0) * C + columns
    tl.store(sum_gx + row, tl.sum(total_gx, 0), mask=inside)
    tl.store(sum_g + row, tl.sum(total_g, 0), mask=inside)
