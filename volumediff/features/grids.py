r"""From the grid of a level to voxels and to points, by trilinear interpolation.

A position of a level with the stride s stands for s voxels along an axis, and for their centre:
the voxel i lies at

.. math:: u = (i + 1/2) / s - 1/2

on the grid of the level, cut off at the first and the last position. Strides are whole, whatever
the size of the volume, so that a crop that begins at a multiple of s sees the same places.
"""

import math
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace
from volumediff.spaces.slices import Slices

__all__ = ["FeatureMap", "feature_map", "spread", "upright"]


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features of one level of a volume, on the level's own grid.

    Arguments:
        values: one row per position, axes d, h, w of the volume
        stride: voxels per position along d, h, w
    """

    values: Float[Tensor, "d2 h2 w2 f"]
    stride: Shape

    def at(self, points: Float[Tensor, "n 3"]) -> Float[Tensor, "n f"]:
        """Features at points, at least in float32.

        Not by `grid_sample`, which wants the whole level in the precision of the coordinates, and
        the coordinates relative to the size of the volume.

        Arguments:
            points: voxel indices along d, h, w; between voxels, too
        """
        rows = self.values.reshape(-1, self.values.shape[-1])
        corners: list[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = []
        step = len(rows)
        for axis, (n, s) in enumerate(zip(self.values.shape[:3], self.stride, strict=True)):
            step //= n
            u = ((points[:, axis].double() + 0.5) / s - 0.5).clamp(0, n - 1)
            low = u.floor()
            share = (u - low).float()
            place = low.long()
            above = (place + 1).clamp(max=n - 1)
            corners.append(((place * step, 1 - share), (above * step, share)))
        wide = torch.promote_types(rows.dtype, torch.float32)
        total = torch.zeros((len(points), rows.shape[1]), dtype=wide, device=rows.device)
        for (i, a), (j, b), (k, c) in product(*corners):
            total.addcmul_(rows[i + j + k].to(wide), (a * b * c)[:, None].to(wide))
        return total


def feature_map(
    space: StateSpace, level: Float[Tensor, "1 f d2 h2 w2"], shape: Shape
) -> FeatureMap:
    """A copy of a tensor on the grid of the state, or on a coarser one, as a feature map.

    Arguments:
        space: of the state
        level: what a layer gives
        shape: voxels of the volume
    """
    turned = upright(space, level)[0]
    stride = []
    for n, s, m in zip(shape, space.stride, turned.shape[1:], strict=True):
        grid, factor = math.ceil(n / s), 1
        while math.ceil(grid / factor) > m:  # ceil(size / 2) per level
            factor *= 2
        stride.append(s * factor)
    d, h, w = stride
    values = turned.movedim(0, -1).clone(memory_format=torch.contiguous_format)
    return FeatureMap(values, (d, h, w))


def spread(a: Float[Tensor, "b c d2 h2 w2"], shape: Shape) -> Float[Tensor, "b c d h w"]:
    """A map on a coarser grid, interpolated linearly to the voxels."""
    return F.interpolate(a.float(), size=shape, mode="trilinear", align_corners=False)


def upright(space: StateSpace, features: Tensor) -> Tensor:
    """A tensor on the state's grid with the axes of the volume."""
    return features.movedim(2, space.axis) if isinstance(space, Slices) else features
