r"""Tile grids, padding, blending windows and overlap-add: pure functions of sizes and tensors.

A volume f is covered by tiles T_j; with a window w the values f_j computed on them are blended to

.. math:: f(p) = \sum_j w_j(p) f_j(p) / \sum_j w_j(p).

Because the windows are positive inside their tile, the sum never vanishes, and tiles that agree
with one volume give this volume back.
"""

import math
from collections.abc import Iterable
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from volumediff.shapes import Shape

__all__ = [
    "Tile",
    "crop",
    "flat_window",
    "hann_window",
    "overlap_add",
    "pad",
    "padded_shape",
    "tile_grid",
]

Tile = tuple[slice, slice, slice]
"""The place of a tile along d, h, w; `x[..., *tile]` cuts it out."""


def padded_shape(shape: Shape, multiple: Shape) -> Shape:
    """The smallest sizes that are not below `shape` and that `multiple` divides."""
    d, h, w = (-(-n // m) * m for n, m in zip(shape, multiple, strict=True))
    return d, h, w


def pad(x: Float[Tensor, "b c d h w"], shape: Shape) -> Float[Tensor, "b c d2 h2 w2"]:
    """Repeats the last plane of each axis until the volume has the given shape."""
    missing = [new - old for new, old in zip(shape, x.shape[2:], strict=True)]
    if not any(missing):
        return x
    return F.pad(x, [n for m in reversed(missing) for n in (0, m)], mode="replicate")


def crop(x: Shaped[Tensor, "b c d h w"], shape: Shape) -> Shaped[Tensor, "b c _ _ _"]:
    """The first voxels of each axis: the inverse of `pad`."""
    d, h, w = shape
    return x[:, :, :d, :h, :w]


def tile_grid(shape: Shape, tile: Shape, *, overlap: Shape = (0, 0, 0)) -> list[Tile]:
    """Places of tiles that cover a volume, in the order of its memory.

    Along each axis the fewest tiles that share at least `overlap` voxels with their neighbours are
    spread evenly, the first and the last flush with the faces. An axis shorter than the tile gets
    one tile of its own size.

    Arguments:
        shape: sizes of the volume
        tile: sizes of a tile
        overlap: voxels shared by neighbouring tiles, at least

    Raises:
        ValueError: a tile is empty or not larger than the overlap
    """
    places = []
    for size, length, shared in zip(shape, tile, overlap, strict=True):
        if not 0 <= shared < length:
            raise ValueError(
                f"overlap must be at least 0 and below the tile size {length}, got {shared}."
            )
        span = size - length
        if span <= 0:
            places.append([slice(0, size)])
            continue
        gaps = math.ceil(span / (length - shared))
        starts = [i * span // gaps for i in range(gaps + 1)]
        places.append([slice(s, s + length) for s in starts])
    return list(product(*places))


def flat_window(shape: Shape) -> Float[Tensor, "d h w"]:
    """The window 1: overlapping tiles are averaged."""
    return torch.ones(shape)


def hann_window(shape: Shape) -> Float[Tensor, "d h w"]:
    """The product of sin^2(pi (i + 1/2) / n): positive, and a constant sum at half overlap."""
    d, h, w = (torch.sin(torch.pi * (torch.arange(n) + 0.5) / n).square() for n in shape)
    return d[:, None, None] * h[:, None] * w


def overlap_add(
    tiles: Iterable[tuple[Tile, Float[Tensor, "b c _ _ _"]]],
    shape: Shape,
    *,
    window: Float[Tensor, "d h w"],
) -> Float[Tensor, "b c _ _ _"]:
    """Blends values on tiles into one volume of the given shape.

    Arguments:
        tiles: places and values; consumed one by one, so that a generator keeps one tile alive
        shape: sizes of the volume
        window: weights on a whole tile; smaller tiles take its centre

    Raises:
        ValueError: no tiles, or a voxel that no tile covers
    """
    total = weight = None
    for place, values in tiles:
        if total is None or weight is None:
            total = values.new_zeros((*values.shape[:2], *shape))
            weight = values.new_zeros(shape)
        share = _centre(window, values.shape[2:]).to(values)
        total[:, :, *place] += share * values
        weight[place] += share
    if total is None or weight is None:
        raise ValueError("expected at least one tile, got none.")
    if not bool((weight > 0).all()):
        raise ValueError(f"the tiles do not cover the volume {shape}; use tile_grid.")
    return total / weight


def _centre(window: Tensor, shape: Shape) -> Tensor:
    starts = [(n - m) // 2 for n, m in zip(window.shape, shape, strict=True)]
    return window[tuple(slice(s, s + m) for s, m in zip(starts, shape, strict=True))]
