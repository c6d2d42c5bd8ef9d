"""Patches of other places in boxes of random sizes, blended in without a seam."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness
from volumediff.data._draws import between, check_range
from volumediff.data.corruptions._base import Corruption
from volumediff.data.corruptions._place import box, foreground_voxel, foreign, inside
from volumediff.data.corruptions._poisson import blended, grown

__all__ = ["NaturalPatch"]


@dataclass(frozen=True)
class NaturalPatch(Corruption):
    r"""Resized patches of another place of another volume, by Poisson blending; the amount grows
    with what the patch really changes,

    .. math:: m = \left(1 + e^{-k (|x' - x| - x_0)}\right)^{-1} \text{ where } x' \ne x.

    Sides are drawn from a shifted gamma distribution of shape 2. Half of the patches keep the
    volume's differences where they are the larger ones.

    Arguments:
        side: smallest and largest side of a box, as shares of the volume's
        scale: of the gamma distribution, as a share of the volume's side
        size: smallest and largest factor by which patches are resized
        patches: most patches in a volume, each number from one on with the same chance
        slope: k, for intensities in [-1, 1]; 1/12 for 256 grey values
        half: x_0, change with an amount of one half; 24 of 256 grey values

    References:
        Schlüter et al. (2022), Natural Synthetic Anomalies for Self-Supervised Anomaly Detection
        and Localization, arXiv:2109.15222
    """

    kind: ClassVar[str] = "natural_patch"
    side: tuple[float, float] = (0.03, 0.4)
    scale: float = 0.05
    size: tuple[float, float] = (0.7, 1.3)
    patches: int = 4
    slope: float = 127.5 / 12
    half: float = 24 / 127.5

    def __post_init__(self) -> None:
        check_range("side", self.side, 0.0, 1.0)
        check_range("size", self.size, 0.1, 10.0)
        if self.patches < 1 or not self.scale > 0:
            raise ValueError(
                f"expected patches >= 1 and scale above 0, got {self.patches} and {self.scale}."
            )

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The volume with the patches, and the logistic of the change."""
        d, h, w = x.shape[1:]
        changed, other = x, donor(key)
        for i in range(1 + int(randomness.uniform(key, "patches") * self.patches)):
            half = [max(n * self._side(key, i, axis) / 2, 0.5) for axis, n in enumerate((d, h, w))]
            centre = foreground_voxel(foreground, key, "centre", i)
            window = box((d, h, w), centre, half, margin=1)
            patch = foreign(
                other,
                x,
                grown((d, h, w), window),
                foreground_voxel(foreground, key, "source", i),
                between(self.size, key, "size", i),
            )
            own = 1.0 if randomness.uniform(key, "mixed", i) < 0.5 else 0.0
            changed = blended(changed, patch, window, weights=(own, 1.0), foreground=foreground)
        changed, _ = inside(x, changed, x[:1], foreground)
        size = (changed - x).abs().mean(0, keepdim=True)
        return inside(x, changed, ((size - self.half) * self.slope).sigmoid(), foreground)

    def _side(self, key: int, patch: int, axis: int) -> float:
        # the sum of two exponential numbers has a gamma distribution of shape 2
        draws = (1 - randomness.uniform(key, "side", patch, axis, j) for j in range(2))
        return min(self.side[0] - self.scale * sum(map(math.log, draws)), self.side[1])
