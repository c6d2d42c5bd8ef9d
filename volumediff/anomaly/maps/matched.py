"""Another map, after the healthy volume was brought to the contrast of the volume."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly.maps._base import Map

__all__ = ["Matched", "matched"]


@dataclass(frozen=True)
class Matched(Map):
    r"""The map of x and g(x̂), with g the curve that says how bright x is where x̂ has a signal,

    .. math:: g(u) = \operatorname{median}\{x(v) : \hat x(v) ≈ u\},

    at the middles of parts of equally many voxels, linear between them. A pseudo-healthy T1w can
    so be compared with a FLAIR. The median does not follow lesions that fill less than half of a
    part.

    Arguments:
        map: the map
        bins: parts
    """

    map: Map
    bins: int = 16

    def __post_init__(self) -> None:
        if self.bins < 2:
            raise ValueError(f"bins: expected at least 2, got {self.bins}.")

    def __call__(
        self,
        x: Float[Tensor, "b c d h w"],
        healthy: Float[Tensor, "b c d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Float[Tensor, "b 1 d h w"]:
        """The map of the volume and the healthy one in its contrast."""
        near = healthy.clone()
        for i, inside in enumerate(foreground[:, 0]):
            for c in range(x.shape[1]):
                near[i, c][inside] = matched(healthy[i, c][inside], x[i, c][inside], self.bins)
        return self.map(x, near, foreground=foreground, spacing_mm=spacing_mm)


def matched(u: Float[Tensor, "n"], v: Float[Tensor, "n"], bins: int) -> Float[Tensor, "n"]:
    """g(u) for the pairs of signals (u, v)."""
    bins = min(bins, len(u))
    if bins < 2:
        return v.clone()
    order = u.argsort(stable=True)
    parts = order.tensor_split(bins)
    knots = torch.stack([u[p].median() for p in parts])
    values = torch.stack([v[p].median() for p in parts])
    high = torch.searchsorted(knots, u.contiguous()).clamp(1, bins - 1)
    width = (knots[high] - knots[high - 1]).clamp_min(1e-6)
    share = ((u - knots[high - 1]) / width).clamp(0, 1)
    return torch.lerp(values[high - 1], values[high], share)
