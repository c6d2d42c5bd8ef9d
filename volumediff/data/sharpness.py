r"""Volumes of equal sharpness whatever their voxel size, for registration.

Blur by a variance of v per axis makes f to :math:`f + \frac{v}{2}\Delta f`, and the enlargement
:math:`e^\lambda` that fits the blurred volume best to f by least squares is, in three dimensions,

.. math:: \lambda = \frac{v}{2}\,
          \frac{\langle x \cdot \nabla f, \Delta f \rangle}{\|x \cdot \nabla f\|^2}
          = \frac{v}{4}\, \frac{\int |\nabla f|^2}{\int (x \cdot \nabla f)^2} > 0

(by parts, twice): whatever it shows, the blurrier of two volumes is found too small and gets
enlarged. Mutual information does the same, more strongly. What blurs a volume here is the box of
its voxels, h²/12, and linear interpolation between samples a step apart, step²/6 on average; the
rest up to a common variance is added by the kernel :math:`e^{-t} I_n(t)`, whose variance is t at
any width.

References:
    Lindeberg (1990), Scale-space for discrete signals (the kernel)
    Pohozaev (1965), Eigenfunctions of the equation Δu + λf(u) = 0 (the integral)
"""

from math import ceil, sqrt

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.data.grid import Grid
from volumediff.data.resampling import resample

__all__ = ["blurred", "own_variance", "strides"]

VOXEL, INTERPOLATION = 1 / 12, 1 / 6  # variances of a box and of a triangle, over their squares
TAILS = 5  # standard deviations of the kernel that are kept; less than 1e-6 lies outside

Steps = tuple[int, int, int]


def strides(grid: Grid, spacing_mm: float) -> Steps:
    """Every how many voxels a volume is sampled, so as to stay at least this fine."""
    d, h, w = (max(1, int(spacing_mm / has + 1e-6)) for has in grid.spacing_mm)
    return d, h, w


def own_variance(grid: Grid, steps: Steps, *, interpolated: bool) -> Float[np.ndarray, "3"]:
    """The variance in mm² that voxels, and interpolation between samples, bring along."""
    spacing = np.array(grid.spacing_mm)
    between = INTERPOLATION * (spacing * steps) ** 2 if interpolated else 0.0
    return VOXEL * spacing**2 + between


def blurred(
    x: Float[np.ndarray, "d h w"],
    grid: Grid,
    *,
    added_mm2: Float[np.ndarray, "3"],
    steps: Steps,
) -> tuple[Float[np.ndarray, "od oh ow"], Grid]:
    """Every so manieth voxel of the volume with more variance; the border is repeated outwards.

    Arguments:
        x, grid: the volume
        added_mm2: variance to add along each axis; nothing where it is below 0
        steps: voxels from one sample to the next
    """
    matrices, shape, move = [], [], np.eye(4)
    for axis, (n, has, step) in enumerate(zip(grid.shape, grid.spacing_mm, steps, strict=True)):
        size = ceil((n - 1) / step) + 1
        origin = -((size - 1) * step - (n - 1)) // 2
        t = max(0.0, float(added_mm2[axis])) / has**2
        matrices.append(_kernel(n, size, step, origin, t))
        shape.append(size)
        move[axis, axis], move[axis, 3] = step, origin
    values = resample(torch.from_numpy(x)[None], (matrices[0], matrices[1], matrices[2]), fill=0.0)
    return values[0].numpy(), Grid((shape[0], shape[1], shape[2]), grid.affine @ move)


def _kernel(n: int, size: int, step: int, origin: int, t: float) -> Float[Tensor, "size n"]:
    from scipy.special import ive

    reach = ceil(TAILS * sqrt(t)) + 2 if t else 0
    away = np.arange(-reach, reach + 1)
    weights = ive(np.abs(away), t)
    at = np.clip(np.arange(size)[:, None] * step + origin + away, 0, n - 1)
    out = np.zeros((size, n))
    np.add.at(out, (np.arange(size)[:, None], at), weights / weights.sum())
    return torch.from_numpy(out)
