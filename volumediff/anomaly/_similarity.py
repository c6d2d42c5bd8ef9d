"""Local structural similarity with Gaussian windows of the foreground."""

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._filters import smooth

__all__ = ["ssim"]


def ssim(
    x: Float[Tensor, "b c d h w"],
    y: Float[Tensor, "b c d h w"],
    *,
    sigma_mm: float,
    spacing_mm: tuple[float, float, float],
    foreground: Bool[Tensor, "b 1 d h w"],
) -> Float[Tensor, "b c d h w"]:
    """The similarity of every channel, for intensities in [-1, 1].

    References:
        Wang et al. (2004), Image quality assessment, eq. 13, K1 = 0.01, K2 = 0.03
    """

    def mean(a: Tensor) -> Tensor:
        return smooth(a, sigma_mm=sigma_mm, spacing_mm=spacing_mm, foreground=foreground)

    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the intensity range is 2
    p, q = x + 1, y + 1
    mean_p, mean_q = mean(p), mean(q)
    var_p = (mean(p * p) - mean_p**2).clamp(min=0)
    var_q = (mean(q * q) - mean_q**2).clamp(min=0)
    both = mean(p * q) - mean_p * mean_q
    found = (2 * mean_p * mean_q + c1) * (2 * both + c2)
    return found / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
