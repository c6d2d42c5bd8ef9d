r"""Regions: unions of labels, which overlap; one channel each, as nnU-Net learns them.

Region i is what label i is written for, over all regions before it. With u_i the chance of region
i, read as independent ones, label i is what a voxel gets whose region i comes true and no later
one does:

.. math:: u_i = \operatorname{clip}\left(\frac{x_i + 1}{2}, 0, 1\right), \qquad
          y_i = u_i \prod_{j > i} (1 - u_j), \qquad \sum_i y_i = 1 - \prod_j (1 - u_j) \le 1.

References:
    Isensee et al. (2021), nnU-Net for Brain Tumor Segmentation, arXiv:2011.00848, and
    `regions_class_order` of nnU-Net's dataset.json
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.codings._base import Coding

__all__ = ["Regions"]


@dataclass(frozen=True)
class Regions(Coding):
    """One channel per region, 1 inside of it and -1 outside.

    Arguments:
        members: the labels of each region, counted from 1 in the order of the recipe's labels; as
            many regions as labels, region i being the last that has label i. Empty for nested
            ones: region i is label i and all after it, such as whole tumour, core, enhancing core
    """

    members: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        for number, region in enumerate(self.members, start=1):
            if not set(region) <= set(range(1, len(self.members) + 1)):
                raise ValueError(
                    f"members: expected labels counted from 1 to {len(self.members)}, one region "
                    f"for each, got {list(region)}."
                )
            later = [r for r in self.members[number:] if number in r]
            if number not in region or later:
                raise ValueError(
                    f"members: expected region {number} to be the last with label {number}, so "
                    f"that labels can be told from regions, got {list(map(list, self.members))}; "
                    "put larger regions first."
                )

    def channels(self, labels: int) -> int:
        if self.members and len(self.members) != labels:
            raise ValueError(
                f"members: expected as many regions as labels, {labels}, got {len(self.members)}."
            )
        return labels

    def classes(self, labels: int) -> int | None:
        return 2

    def unions(self, labels: int) -> tuple[tuple[int, ...], ...]:
        return self.members or tuple(tuple(range(i, labels + 1)) for i in range(1, labels + 1))

    def shares(self, x: Float[Tensor, "n c d h w"]) -> Float[Tensor, "n l d h w"]:
        return (x + 1) / 2

    def encode(
        self, masks: Bool[Tensor, "l d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Float[Tensor, "c d h w"]:
        inside = [masks[[i - 1 for i in region]].any(dim=0) for region in self.unions(len(masks))]
        return 2 * torch.stack(inside).float() - 1

    def decode(
        self, x: Float[Tensor, "n c d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Float[Tensor, "n l d h w"]:
        found, free = [], torch.ones_like(x[:, 0])
        for u in reversed(self.shares(x).clamp(0, 1).unbind(dim=1)):
            found.append(free * u)
            free = free * (1 - u)
        return torch.stack(found[::-1], dim=1)
