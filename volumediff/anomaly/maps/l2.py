"""Squared residual (x - x̂)² of a volume and its pseudo-healthy version."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly.maps._base import Map

__all__ = ["L2"]


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
