"""Padding and places of tiles: pure functions of sizes and tensors."""

import math
from itertools import product

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

from volumediff.shapes import Shape

__all__ = [
    "Tile",
    "crop",
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
