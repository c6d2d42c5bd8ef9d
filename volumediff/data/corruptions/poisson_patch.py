"""A box of another volume, blended in without a seam."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.data._draws import between, check_range
from volumediff.data.corruptions._base import Corruption
from volumediff.data.corruptions._place import box, foreground_voxel, inside
from volumediff.data.corruptions._poisson import blended, grown

__all__ = ["PoissonPatch"]


@dataclass(frozen=True)
class PoissonPatch(Corruption):
    r"""A box of another volume at the same place, by its differences and not its intensities,

    .. math:: \Delta x' = \mathrm{div}\, v, \qquad v = (1 - a) \nabla x \text{ or }
              a \nabla x_{donor}, \text{ whichever is larger},

    with x' = x around the box.

    Arguments:
        side: smallest and largest half side of the box, as shares of the volume's
        factor: smallest and largest a

    References:
        Tan et al. (2021), Detecting Outliers with Poisson Image Interpolation, arXiv:2107.02622
    """

    kind: ClassVar[str] = "poisson_patch"
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
        centre = foreground_voxel(foreground, key, "centre")
        window = box((d, h, w), centre, half, margin=1)
        a = between(self.factor, key, "factor")
        patch = donor(key).to(x)[(slice(None), *grown((d, h, w), window))]
        changed = blended(x, patch, window, weights=(1 - a, a), foreground=foreground)
        amount = torch.full_like(x[:1], a)
        return inside(x, changed, amount, foreground)
