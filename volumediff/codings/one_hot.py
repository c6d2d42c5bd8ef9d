r"""One channel per class, the background included: what softmax and categorical noise need.

.. math:: x_k = 2 [c = k] - 1, \qquad
          p_k = \operatorname{clip}\left(\frac{x_k + 1}{2}, 0, 1\right), \qquad
          y_k = p_k / \sum_j p_j, \qquad k = 0 \dots l.

References:
    Hoogeboom et al. (2021), Argmax Flows and Multinomial Diffusion, arXiv:2102.05379
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.codings._base import Coding

__all__ = ["OneHot"]


@dataclass(frozen=True)
class OneHot(Coding):
    """1 in the channel of a voxel's class and -1 in the others; class 0 is the background."""

    grouped: ClassVar[bool] = True

    def channels(self, labels: int) -> int:
        return labels + 1

    def classes(self, labels: int) -> int | None:
        return labels + 1

    def shares(self, x: Float[Tensor, "n c d h w"]) -> Float[Tensor, "n l d h w"]:
        return (x[:, 1:] + 1) / 2

    def encode(
        self, masks: Bool[Tensor, "l d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Float[Tensor, "c d h w"]:
        background = ~masks.any(dim=0, keepdim=True)
        return 2 * torch.cat([background, masks]).float() - 1

    def decode(
        self, x: Float[Tensor, "n c d h w"], *, spacing_mm: tuple[float, float, float]
    ) -> Float[Tensor, "n l d h w"]:
        p = ((x + 1) / 2).clamp(0, 1)
        total = p.sum(dim=1, keepdim=True)
        # Where no class has a share, nothing is known: the background takes the voxel.
        return torch.where(total > 0, p[:, 1:] / total.clamp(min=torch.finfo(p.dtype).tiny), 0.0)
