r"""Through-plane consistency: do the slices of a map belong together?

Methods that work slice by slice leave jumps between slices that no lesion has. With T_k the mean
of |∂_k a| over pairs of neighbouring foreground voxels along axis k, per millimetre,

    ratio_k = T_k / mean of the T of the two other axes.

A map without direction has ratio 1 along every axis, one whose slices are independent has more
across them. Anatomy has directions of its own: a pseudo-healthy volume is compared with the volume
it comes from, ratio_k(x̂) / ratio_k(x), which is 1 where the slices fit as well as before.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["through_plane", "variation"]

Triple = tuple[float, float, float]


def variation(
    a: Float[Tensor, "d h w"],
    *,
    foreground: Bool[Tensor, "d h w"] | None = None,
    spacing_mm: Triple,
) -> Triple:
    """T_k along d, h, w; nan along an axis without two neighbours in the foreground."""
    seen = torch.ones_like(a, dtype=torch.bool) if foreground is None else foreground
    means = []
    for axis, step in enumerate(spacing_mm):
        n = a.shape[axis]
        low, high = (0, max(n - 1, 0)), (min(1, n), max(n - 1, 0))
        both = seen.narrow(axis, *low) & seen.narrow(axis, *high)
        change = (a.narrow(axis, *high) - a.narrow(axis, *low))[both].abs()
        mean = float(change.double().mean()) if change.numel() else float("nan")
        means.append(mean / step)
    return means[0], means[1], means[2]


def through_plane(
    a: Float[Tensor, "d h w"],
    *,
    foreground: Bool[Tensor, "d h w"] | None = None,
    spacing_mm: Triple,
) -> Triple:
    """ratio_k with each of d, h, w as the axis through the slices; nan for a flat map."""
    t = variation(a, foreground=foreground, spacing_mm=spacing_mm)
    ratios = []
    for k in range(3):
        plane = (sum(t) - t[k]) / 2
        ratios.append(t[k] / plane if plane > 0 else float("nan"))
    return ratios[0], ratios[1], ratios[2]
