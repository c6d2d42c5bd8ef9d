r"""Filters in millimetres that look at the foreground only.

Smoothing is a normalised convolution, G_σ (w a) / G_σ w with w = 1 in the foreground: what lies
outside, padding included, has no weight, so a larger field of view changes nothing. Dilation and
closing use boxes, as the published methods do, because their maximum is separable.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import max_pool1d

__all__ = ["close", "dilate", "inside_quantile", "smooth"]

Spacing = tuple[float, float, float]
_REACH = 3.0  # the Gaussian is cut at three standard deviations


def _along(a: Tensor, axis: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Applies a function of `(n, 1, length)` along one axis of a volume."""
    lines = a.movedim(axis, -1)
    shape = lines.shape
    return function(lines.reshape(-1, 1, shape[-1])).reshape(shape).movedim(-1, axis)


def _blur(a: Tensor, sigmas: Spacing) -> Tensor:
    # Sums of shifted views, not a convolution: several times faster on the CPU, and on CUDA a
    # float32 convolution may run in TF32.
    for axis, sigma in zip((-3, -2, -1), sigmas, strict=True):
        length = a.shape[axis]
        reach = min(math.ceil(_REACH * sigma), length - 1)
        weights = [math.exp(-0.5 * (j / sigma) ** 2) for j in range(reach + 1)]
        norm = weights[0] + 2 * sum(weights[1:])
        result = a * (weights[0] / norm)
        for j in range(1, reach + 1):
            left, right = (v.narrow(axis, 0, length - j) for v in (a, result))
            right.add_(a.narrow(axis, j, length - j), alpha=weights[j] / norm)
            result.narrow(axis, j, length - j).add_(left, alpha=weights[j] / norm)
        a = result
    return a


def smooth(
    a: Float[Tensor, "b c d h w"],
    *,
    sigma_mm: float,
    spacing_mm: Spacing,
    foreground: Bool[Tensor, "b 1 d h w"],
) -> Float[Tensor, "b c d h w"]:
    """Gaussian mean over the foreground; zero outside."""
    weight = foreground.to(a.dtype)
    if sigma_mm <= 0:
        return a * weight
    sigmas = tuple(sigma_mm / s for s in spacing_mm)
    tiny = torch.finfo(a.dtype).tiny
    return _blur(a * weight, sigmas) / _blur(weight, sigmas).clamp(min=tiny) * weight


def dilate(
    a: Float[Tensor, "b c d h w"], *, radius_mm: float, spacing_mm: Spacing
) -> Float[Tensor, "b c d h w"]:
    """Maximum over a box of half-width `radius_mm`, rounded to voxels."""
    for axis, spacing in zip((-3, -2, -1), spacing_mm, strict=True):
        reach = math.floor(radius_mm / spacing + 0.5)
        if reach:
            size = 2 * reach + 1
            # max_pool1d pads by at most half the window, with minus infinity
            a = _along(a, axis, lambda v, k=size, r=reach: max_pool1d(v, k, 1, r))
    return a


def close(
    a: Float[Tensor, "b c d h w"], *, radius_mm: float, spacing_mm: Spacing
) -> Float[Tensor, "b c d h w"]:
    """Dilation followed by erosion: fills gaps up to the box, moves no outline."""
    wide = dilate(a, radius_mm=radius_mm, spacing_mm=spacing_mm)
    return -dilate(-wide, radius_mm=radius_mm, spacing_mm=spacing_mm)


def inside_quantile(
    a: Float[Tensor, "*shape"], q: float, *, foreground: Bool[Tensor, "*shape"]
) -> float:
    """The smallest value that at least a share `q` of the foreground does not exceed."""
    values = a[foreground]
    if values.numel() == 0:
        raise ValueError("expected a foreground with voxels, got an empty one.")
    rank = min(max(math.ceil(q * values.numel()), 1), values.numel())
    return float(values.kthvalue(rank).values)
