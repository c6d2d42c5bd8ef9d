"""Coarse noise everywhere in the foreground."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import noise
from volumediff.data.corruptions._base import Corruption
from volumediff.data.corruptions._place import inside

__all__ = ["Coarse"]


@dataclass(frozen=True)
class Coarse(Corruption):
    r"""White noise on a coarse grid, interpolated, added in the foreground,

    .. math:: x' = x + σ n, \qquad m = |x' - x| / 2.

    Arguments:
        sigma: standard deviation σ in every voxel, for intensities in [-1, 1]. The published 0.2
            is of the nodes and for intensities in [0, 1]: interpolation in a plane leaves 2/3 of
            it on average, which is 0.27 here
        cell: voxels between the nodes; 16 nodes along 128 voxels in the paper

    References:
        Kascenas et al. (2022), Denoising Autoencoders for Unsupervised Anomaly Detection in Brain
        MRI, MIDL
    """

    kind: ClassVar[str] = "coarse"
    sigma: float = 0.2
    cell: int = 8

    def __post_init__(self) -> None:
        if not self.sigma > 0 or self.cell < 1:
            raise ValueError(
                f"expected sigma above 0 and cell >= 1, got {self.sigma} and {self.cell}."
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
        """The noisy volume, and the size of the change in units of the range of intensities."""
        c, d, h, w = x.shape
        n = noise.CoarseNoise(self.cell)((c, d, h, w), key, "coarse").to(x)
        changed, _ = inside(x, x + self.sigma * n, x[:1], foreground)
        return changed, (changed - x).abs().mean(0, keepdim=True) / 2
