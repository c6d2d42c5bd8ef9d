r"""Resampling with one small matrix per axis.

A canonical grid and the grid that a network sees differ by spacing and by a crop, so that voxel i
of the output lies at :math:`x = i\,\text{step} + \text{origin}` in voxels of the input, axis by
axis. The weight of input voxel j is the triangle

.. math:: w_{ij} \propto \max\left(0, 1 - \frac{|x_i - j|}{\max(1, \text{step})}\right),

rows summing to one and balanced about x, so that linear functions come out exactly: linear
interpolation where the output is finer, an anti-aliased mean where it is coarser, and a copy where
the step is 1 and the origin whole. Labels are resampled as memberships, and the largest wins. Only
channels on another, rotated grid need the general case.
"""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from volumediff.data.grid import Grid

__all__ = ["axis_weights", "nearest_onto", "onto", "resample", "resample_labels"]

# positions closer than this to a voxel, or to the edge of the field of view, are on it
SLACK = 1e-4

Matrices = tuple[Float[Tensor, "od d"], Float[Tensor, "oh h"], Float[Tensor, "ow w"]]


def axis_weights(
    size: int, out: int, *, step: float, origin: float, width: float | None = None
) -> Float[Tensor, "out size"]:
    """The matrix of one axis; rows outside the field of view are zero.

    Arguments:
        size, out: voxels of input and output
        step, origin: output voxel i lies at i * step + origin
        width: half width of the triangle in input voxels; max(1, step) when None
    """
    width = max(1.0, step) if width is None else width
    x = torch.arange(out, dtype=torch.float64) * step + origin
    near = x.round()
    x = torch.where((x - near).abs() < SLACK, near, x)
    j = torch.arange(size, dtype=torch.float64)
    gap = j - x[:, None]
    weights = (1 - gap.abs() / width).clamp(min=0)
    # Sampled at a fraction of a voxel, the triangle's centre of mass is off by up to 0.03; a
    # slope over it moves the centre back. Not at the edges, where it would extrapolate.
    first, second = (weights * gap).sum(1), (weights * gap**2).sum(1)
    whole = (x - width >= -1) & (x + width <= size) & (second > 0)
    slope = torch.where(whole, -first / second.clamp(min=1e-12), 0.0)
    weights = weights * (1 + slope[:, None] * gap)
    inside = (x >= -0.5 - SLACK) & (x <= size - 0.5 + SLACK)
    total = weights.sum(1, keepdim=True)
    return torch.where(inside[:, None] & (total > 0), weights / total.clamp(min=1e-12), 0.0)


def resample(
    x: Float[Tensor, "c d h w"], matrices: Matrices, *, fill: float
) -> Float[Tensor, "c od oh ow"]:
    """Applies one matrix per axis; voxels outside the field of view get `fill`."""
    for axis, matrix in enumerate(matrices, start=1):
        x = _along(x, matrix.to(x.dtype), axis)
    for axis, matrix in enumerate(matrices, start=1):
        outside = (matrix == 0).all(1)
        if outside.any():
            x.movedim(axis, 0)[outside] = fill
    return x


def _along(x: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """One axis; a matrix of zeros and single ones copies, which keeps every bit."""
    ones = matrix == 1
    if bool(((matrix != 0).sum(1) == ones.sum(1)).all()):
        picked = ones.int().argmax(1)
        return x.index_select(axis, picked)
    return (x.movedim(axis, -1) @ matrix.T).movedim(-1, axis).contiguous()


def resample_labels(
    y: UInt8[Tensor, "1 d h w"], matrices: Matrices
) -> UInt8[Tensor, "1 od oh ow"]:
    """The label whose resampled membership is largest; background outside the field of view."""
    return _by_membership(y, lambda member: resample(member, matrices, fill=0.0))


def _by_membership(y: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    values = [int(v) for v in torch.unique(y) if v > 0]
    result = best = None
    for value in values:
        share = move((y == value).float())
        if result is None:
            result, best = torch.zeros_like(share, dtype=torch.uint8), torch.zeros_like(share)
            rest = torch.ones_like(share)
        rest -= share
        wins = share > best
        result[wins] = value
        best = torch.maximum(best, share)
    if result is None:
        return torch.zeros_like(move(torch.zeros_like(y, dtype=torch.float32)), dtype=torch.uint8)
    result[rest > best] = 0
    return result


def onto(
    x: Float[Tensor, "c d h w"], source: Grid, target: Grid, *, fill: float
) -> tuple[Float[Tensor, "c od oh ow"], Bool[Tensor, "1 od oh ow"]]:
    """Trilinear values of a volume at the voxels of any other grid, anti-aliased.

    Returns:
        values (with `fill` outside the field of view), and where the volume covers the target
    """
    index = np.linalg.inv(source.affine) @ target.affine  # target voxel -> source voxel
    steps = np.linalg.norm(index[:3, :3], axis=1)
    smooth = [
        axis_weights(n, n, step=1.0, origin=0.0, width=max(1.0, float(s)))
        for n, s in zip(source.shape, steps, strict=True)
    ]
    x = resample(x, (smooth[0], smooth[1], smooth[2]), fill=fill)
    matrix = torch.from_numpy(index)
    sizes = torch.tensor(source.shape, dtype=torch.float64)
    d, h, w = target.shape
    out = x.new_empty(x.shape[0], d, h, w)
    covered = torch.empty(1, d, h, w, dtype=torch.bool)
    plane = torch.stack(
        torch.meshgrid(
            torch.arange(h, dtype=torch.float64),
            torch.arange(w, dtype=torch.float64),
            indexing="ij",
        ),
        dim=-1,
    )
    for i in range(d):  # plane by plane: positions need three times the memory of the values
        at = plane @ matrix[:3, 1:3].T + matrix[:3, 0] * i + matrix[:3, 3]
        inside = ((at >= -0.5 - SLACK) & (at <= sizes - 0.5 + SLACK)).all(-1)
        unit = ((2 * at + 1) / sizes - 1).flip(-1).to(x.dtype)  # grid_sample wants w, h, d
        values = torch.nn.functional.grid_sample(
            x[None], unit[None, None], mode="bilinear", padding_mode="border", align_corners=False
        )
        out[:, i] = torch.where(inside, values[0, :, 0], fill)
        covered[0, i] = inside
    return out, covered


def nearest_onto(
    y: UInt8[Tensor, "1 d h w"], source: Grid, target: Grid
) -> UInt8[Tensor, "1 od oh ow"]:
    """The label of the closest voxel, at the voxels of any other grid; 0 outside.

    Borders are rougher than a majority's, but labels keep their volume on average, those of a few
    voxels too, which a majority shrinks or loses.
    """
    index = torch.from_numpy(np.linalg.inv(source.affine) @ target.affine)
    sizes = torch.tensor(source.shape)
    h, w = (torch.arange(n, dtype=torch.float64)[:, None] for n in target.shape[1:])
    plane = (h * index[:3, 1])[:, None] + w * index[:3, 2] + index[:3, 3]
    out = y.new_zeros(1, *target.shape)
    for i in range(target.shape[0]):
        at = (plane + index[:3, 0] * i).round().long()
        inside = ((at >= 0) & (at < sizes)).all(-1)
        a, b, c = at[inside].unbind(-1)
        out[0, i][inside] = y[0, a, b, c]
    return out
