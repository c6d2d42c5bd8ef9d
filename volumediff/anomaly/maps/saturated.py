"""Another map, divided by one of its quantiles and limited to 1."""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly._filters import inside_quantile
from volumediff.anomaly.maps._base import Map

__all__ = ["Saturated"]


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
