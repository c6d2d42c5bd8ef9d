"""Labelled voxels that stand for a volume: as many of every class, drawn from a key."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from volumediff.randomness import generator
from volumediff.shapes import Shape
from volumediff.transfer import sent

__all__ = ["drawn_voxels", "voxel_points"]


def drawn_voxels(
    classes: Int[Tensor, "d h w"], count: int, each: int, *, key: int
) -> tuple[Int[Tensor, "n"], Bool[Tensor, "n"]]:
    """Flat indices of voxels, `each` per class, without repetition, class after class.

    Every voxel draws a number, and the highest of each class are taken: a smaller `each` takes a
    part of the same voxels.

    Arguments:
        classes: class of every voxel, 0 to count - 1
        count: number of classes
        each: most voxels of a class
        key: of the draw

    Returns:
        the indices, and which of them are of their class: a class with fewer voxels is filled up
        with others
    """
    flat = classes.flatten()
    ranks = sent(torch.rand(len(flat), generator=generator(key, "voxels")), flat.device)
    each = min(each, len(flat))
    found, sound = [], []
    for i in range(count):
        highest = torch.where(flat == i, ranks, -1.0).topk(each)
        found.append(highest.indices)
        sound.append(highest.values >= 0)
    return torch.cat(found), torch.cat(sound)


def voxel_points(index: Int[Tensor, "n"], shape: Shape) -> Float[Tensor, "n 3"]:
    """Voxel indices along d, h, w of flat indices."""
    _, h, w = shape
    rows = [index // (h * w), index // w % h, index % w]
    return torch.stack(rows, dim=1).double()
