"""A box of another volume, blended in linearly at the same place."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.data._draws import between, check_range
from volumediff.data.corruptions._base import Corruption
from volumediff.data.corruptions._place import box, foreground_voxel

__all__ = ["ForeignPatch"]


@dataclass(frozen=True)
class ForeignPatch(Corruption):
    r"""A box of another volume, blended in at the same place,

    .. math:: x' = (1 - a)\, x + a\, x_{donor} \text{ in the box}.

    Arguments:
        side: smallest and largest half side of the box, as shares of the volume's
        factor: smallest and largest a

    References:
        Tan et al. (2020), Detecting Outliers with Foreign Patch Interpolation, arXiv:2011.04197
    """

    kind: ClassVar[str] = "foreign_patch"
    side: tuple[float, float] = (0.05, 0.2)
    factor: tuple[float, float] = (0.05, 0.95)

    def __post_init__(self) -> None:
        check_range("side", self.side, 0.0, 1.0)
        check_range("factor", self.factor, 0.0, 1.0)

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The volume with the patch, and a in the box."""
        d, h, w = x.shape[1:]
        half = [max(n * between(self.side, key, "side", i), 0.5) for i, n in enumerate((d, h, w))]
        window = box((d, h, w), foreground_voxel(foreground, key, "centre"), half)
        amount = torch.zeros_like(x[:1])
        amount[:, window[0], window[1], window[2]] = between(self.factor, key, "factor")
        amount = amount * foreground
        return torch.lerp(x, donor(key).to(x), amount), amount
