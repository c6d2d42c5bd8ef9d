"""Product of several maps, high where all of them are."""

import math
from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly.maps._base import Map

__all__ = ["Product"]


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
