"""A map of squared residuals."""

from dataclasses import dataclass

from volumediff.anomaly.maps._base import Map


@dataclass(frozen=True)
class Squared(Map):
    """The squared residual times a factor.

    Arguments:
        factor: above 0
    """

    factor: float = 1.0

    def __call__(self, x, healthy, *, foreground, spacing_mm):
        return self.factor * (x - healthy).square().mean(dim=1, keepdim=True) * foreground
