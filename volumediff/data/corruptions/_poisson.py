r"""Poisson blending in a box: the volume whose differences are nearest to given ones,

.. math:: \min_u \sum_{pq} (x'_q - x'_p - v_{pq})^2, \qquad x' = x + u, \quad u = 0
          \text{ around the box}, \qquad \Delta u = \mathrm{div}(v - \nabla x).

The discrete sine transform diagonalises the Laplacian of a box, so that the solution is exact and
costs three small matrix products each way.

References:
    Pérez et al. (2003), Poisson Image Editing
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.data.corruptions._place import Box

__all__ = ["blended", "grown"]


def grown(shape: tuple[int, int, int], window: Box) -> Box:
    """The window with the voxels around it; an axis of one or two voxels has none."""
    d, h, w = (
        slice(p.start - 1, p.stop + 1) if n > 2 else p for p, n in zip(window, shape, strict=True)
    )
    return d, h, w


def blended(
    x: Float[Tensor, "c d h w"],
    patch: Float[Tensor, "c _ _ _"],
    window: Box,
    *,
    weights: tuple[float, float],
    foreground: Bool[Tensor, "1 d h w"],
) -> Float[Tensor, "c d h w"]:
    r"""The volume with a patch in a window, seamlessly.

    The wanted differences are the larger ones of the weighted volume and the weighted patch; the
    volume keeps its own ones across the border of the foreground and outside.

    .. math:: v_{pq} = \arg\max_{g \in \{w_0 (x_q - x_p),\, w_1 (y_q - y_p)\}} |g|

    Arguments:
        x: the volume
        patch: y, on the window with the voxels around it; see `grown`
        window: voxels that change, one voxel away from the border of the volume
        weights: (w_0, w_1) of the differences of volume and patch
        foreground: voxels whose differences may change
    """
    d, h, w = x.shape[1:]
    around = (slice(None), *grown((d, h, w), window))
    whole = torch.promote_types(x.dtype, torch.float32)
    ours, theirs, allowed = x[around].to(whole), patch.to(whole), foreground[around]
    free = [n <= 2 for n in (d, h, w)]
    right = torch.zeros_like(ours)
    for axis in (i + 1 for i in range(3) if not free[i]):
        dx, dy = weights[0] * ours.diff(dim=axis), weights[1] * theirs.diff(dim=axis)
        wanted = torch.where(dx.abs() > dy.abs(), dx, dy) - ours.diff(dim=axis)
        n = ours.shape[axis]
        wanted = wanted * (allowed.narrow(axis, 1, n - 1) & allowed.narrow(axis, 0, n - 1))
        right.narrow(axis, 1, n - 2).add_(wanted.diff(dim=axis))
    core = tuple(slice(None) if f else slice(1, -1) for f in free)
    changed = x.clone()
    core = (slice(None), *core)
    changed[(slice(None), *window)] = (ours[core] + _solved(right[core], free)).to(x)
    return changed


def _solved(right: Float[Tensor, "c _ _ _"], free: list[bool]) -> Float[Tensor, "c _ _ _"]:
    """u with the Laplacian `right`, zero around the box; free axes are not coupled."""
    eigenvalues = torch.zeros((), dtype=torch.float64)
    sines = []
    for axis, n in enumerate(right.shape[1:]):
        if free[axis]:
            continue
        k = torch.arange(1, n + 1, dtype=torch.float64) * math.pi / (n + 1)
        sine = (k[:, None] * torch.arange(1, n + 1)).sin() * math.sqrt(2 / (n + 1))
        sines.append((axis + 1, sine.to(right)))
        shape = [-1 if a == axis else 1 for a in range(3)]
        eigenvalues = eigenvalues + (2 - 2 * k.cos()).view(shape)
    if not sines:  # no border to be seamless with
        return torch.zeros_like(right)
    u = _along(sines, right) / -eigenvalues.to(right)
    return _along(sines, u)  # the transform is its own inverse


def _along(matrices: list[tuple[int, Tensor]], x: Tensor) -> Tensor:
    for axis, matrix in matrices:
        x = torch.movedim(torch.movedim(x, axis, -1) @ matrix, -1, axis)
    return x
