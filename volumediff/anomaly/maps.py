r"""Maps: how far a volume x is from its pseudo-healthy version x̂, voxel by voxel.

Higher means more abnormal; channels are averaged; the map is zero outside the foreground.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._filters import inside_quantile, smooth

__all__ = ["L1", "L2", "SSIM", "Map", "Product", "Saturated"]


@dataclass(frozen=True)
class Map(ABC):
    """A distance between a volume and its pseudo-healthy version."""

    @abstractmethod
    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The map a(x, x̂) ≥ 0, zero outside the foreground."""


@dataclass(frozen=True)
class L1(Map):
    """Absolute residual, a = mean_c |x - x̂|."""

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The absolute residual."""
        return (x - healthy).abs().mean(dim=1, keepdim=True) * foreground


@dataclass(frozen=True)
class L2(Map):
    """Squared residual, a = mean_c (x - x̂)²."""

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The squared residual."""
        return (x - healthy).square().mean(dim=1, keepdim=True) * foreground


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

        def mean(a: Tensor) -> Tensor:
            return smooth(a, sigma_mm=self.sigma_mm, spacing_mm=spacing_mm, foreground=foreground)

        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2  # the intensity range is 2
        p, q = x + 1, healthy + 1
        mean_p, mean_q = mean(p), mean(q)
        var_p = (mean(p * p) - mean_p**2).clamp(min=0)
        var_q = (mean(q * q) - mean_q**2).clamp(min=0)
        both = mean(p * q) - mean_p * mean_q
        ssim = (2 * mean_p * mean_q + c1) * (2 * both + c2)
        ssim = ssim / ((mean_p**2 + mean_q**2 + c1) * (var_p + var_q + c2))
        return (1 - ssim).clamp(min=0).mean(dim=1, keepdim=True) * foreground


@dataclass(frozen=True)
class Product(Map):
    """Product of maps, a = Π_i a_i: abnormal where all of them say so.

    Arguments:
        maps: the factors
    """

    maps: tuple[Map, ...]

    def __post_init__(self) -> None:
        if not self.maps:
            raise ValueError("maps: expected at least one map, got none.")

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The product of the factors."""
        factors = [m(x, healthy, foreground=foreground, spacing_mm=spacing_mm) for m in self.maps]
        return math.prod(factors[1:], start=factors[0])


@dataclass(frozen=True)
class Saturated(Map):
    """A map relative to its own quantile in the foreground, a = min(a / Q_q(a), 1).

    Arguments:
        map: the map
        quantile: share q of the foreground that lies below the value that becomes 1
    """

    map: Map
    quantile: float = 0.95

    def __post_init__(self) -> None:
        if not 0 < self.quantile <= 1:
            raise ValueError(f"quantile: expected a share in (0, 1], got {self.quantile}.")

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The map in units of its quantile, at most 1."""
        a = self.map(x, healthy, foreground=foreground, spacing_mm=spacing_mm)
        for i, (volume, inside) in enumerate(zip(a, foreground, strict=True)):
            top = inside_quantile(volume, self.quantile, foreground=inside)
            # a map that is zero up to the quantile has no unit: everything above it is 1
            a[i] = (volume / top).clamp(max=1) if top > 0 else (volume > 0).to(a.dtype)
        return a
