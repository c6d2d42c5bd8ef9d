r"""Signed masks: 1 where the label is, another code, -1 as a rule, where it is not.

.. math:: u_i = \operatorname{clip}\left(\frac{x_i - a}{1 - a}, 0, 1\right), \qquad
          y_i = \frac{u_i \prod_{j \ne i} (1 - u_j)}
                     {\prod_j (1 - u_j) + \sum_k u_k \prod_{j \ne k} (1 - u_j)},

with a the code of absence: channels are modelled apart, but a voxel has one label at most, so
that the shares u are read as independent chances given that no two of them come true. With one
label y is u. Where two or more are certain the formula is 0 / 0, and these share the voxel.

References:
    Amit et al. (2021), SegDiff, arXiv:2112.00390, for -1 and 1; Wolleb et al. (2022),
    arXiv:2112.03145, code masks 0 and 1, which loses rare labels in few steps
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.codings._base import Coding

__all__ = ["Signed"]


@dataclass(frozen=True)
class Signed(Coding):
    """One channel per label, 1 inside of it.

    Arguments:
        absent: code outside, below 1
    """

    absent: float = -1.0

    def __post_init__(self) -> None:
        if not self.absent < 1:
            raise ValueError(f"expected absent below 1, got {self.absent}.")

    def channels(self, labels: int) -> int:
        return labels

    def classes(self, labels: int) -> int | None:
        return 2 if self.absent == -1 else None

    def shares(self, x: Float[Tensor, "n c d h w"]) -> Float[Tensor, "n l d h w"]:
        return (x - self.absent) / (1 - self.absent)

    def encode(
        self, masks: Bool[Tensor, "l d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Float[Tensor, "c d h w"]:
        return (1 - self.absent) * masks.float() + self.absent

    def decode(
        self, x: Float[Tensor, "n c d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Float[Tensor, "n l d h w"]:
        u = self.shares(x).clamp(0, 1)
        if u.shape[1] == 1:
            return u
        without = 1 - u
        alone = torch.stack(
            [
                u[:, i] * torch.cat([without[:, :i], without[:, i + 1 :]], dim=1).prod(dim=1)
                for i in range(u.shape[1])
            ],
            dim=1,
        )
        total = without.prod(dim=1, keepdim=True) + alone.sum(dim=1, keepdim=True)
        certain = (u == 1).to(u.dtype)
        shared = certain / certain.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.where(total > 0, alone / total.clamp(min=torch.finfo(u.dtype).tiny), shared)
