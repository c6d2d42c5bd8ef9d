"""Structural dissimilarity."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._similarity import ssim
from volumediff.anomaly.maps._base import Map

__all__ = ["SSIM"]


@dataclass(frozen=True)
class SSIM(Map):
    r"""Structural dissimilarity, a = max(0, 1 - SSIM), with Gaussian windows of the foreground.

    .. math::
        SSIM = \frac{(2 μ_x μ_{x̂} + c_1)(2 σ_{x x̂} + c_2)}
                    {(μ_x^2 + μ_{x̂}^2 + c_1)(σ_x^2 + σ_{x̂}^2 + c_2)}

    The means are local and one-sided at the rim, so that neither background nor padding enters.
    Intensities are shifted from [-1, 1] to [0, 2], as SSIM compares means as ratios.

    Arguments:
        sigma_mm: standard deviation of the window; the usual 11-voxel window has 1.5 voxels

    References:
        Wang et al. (2004), Image quality assessment, eq. 13, K1 = 0.01, K2 = 0.03
    """

    sigma_mm: float = 1.5

    def __post_init__(self) -> None:
        if not self.sigma_mm > 0:
            raise ValueError(f"sigma_mm: expected a positive width, got {self.sigma_mm}.")

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """One minus the local structural similarity."""
        inside = {"spacing_mm": spacing_mm, "foreground": foreground}
        near = ssim(x, healthy, sigma_mm=self.sigma_mm, **inside)
        return (1 - near).clamp(min=0).mean(dim=1, keepdim=True) * foreground
