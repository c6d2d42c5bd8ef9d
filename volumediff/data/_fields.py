r"""Smooth random fields and smooth invertible deformations on a voxel grid.

A displacement u (in voxels, channels in the order d, h, w) stands for the map φ(p) = p + u(p), and
the warped volume is x∘φ. A stationary velocity field v gives the invertible map φ = exp(v), found
by scaling and squaring:

    u₀ = v / 2ⁿ,   u_{k+1}(p) = u_k(p) + u_k(p + u_k(p)),   exp(v) = id + u_n,

whose inverse is exp(−v).

References:
    Arsigny et al. (2006), A Log-Euclidean Framework for Statistics on Diffeomorphisms
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from volumediff import randomness

__all__ = ["exponential", "gaussian", "identity", "sample", "smooth_noise", "warp"]

_TRUNCATE = 3.5  # half-width of a Gaussian kernel in standard deviations; the rest weighs 5e-4


def _kernel(sigma: float) -> Tensor:
    if sigma <= 0:
        return torch.ones(1)
    radius = math.ceil(_TRUNCATE * sigma)
    taps = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weights = torch.exp(-0.5 * (taps / sigma) ** 2)
    return (weights / weights.sum()).to(torch.float32)


def _band(kernel: Tensor, n: int) -> Tensor:
    """(n, n + len(kernel) - 1) matrix of the convolution without padding."""
    band = torch.zeros(n, n + len(kernel) - 1)
    for i in range(n):
        band[i, i : i + len(kernel)] = kernel
    return band


def _along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Applies a matrix along one spatial axis of (c, d, h, w)."""
    return torch.movedim(torch.movedim(x, axis + 1, -1) @ matrix.T, -1, axis + 1)


def gaussian(
    x: Float[Tensor, "c d h w"],
    sigma: tuple[float, float, float],
    *,
    thin: tuple[int, int, int] = (1, 1, 1),
) -> Float[Tensor, "c e i j"]:
    """Gaussian smoothing, sigma in voxels per axis; the border value goes on outside.

    Of the result every `thin`-th voxel is kept, and only those are computed.
    """
    for axis, (s, step) in enumerate(zip(sigma, thin, strict=True)):
        kernel, n = _kernel(s), x.shape[axis + 1]
        band, radius = _band(kernel, n), len(kernel) // 2
        matrix = band[:, radius : radius + n].clone()
        matrix[:, 0] += band[:, :radius].sum(1)
        matrix[:, -1] += band[:, radius + n :].sum(1)
        if s > 0 or step > 1:
            x = _along(matrix[::step].to(x), x, axis)
    return x.contiguous()


def smooth_noise(
    shape: tuple[int, int, int, int], sigma: tuple[float, float, float], *parts: int | str
) -> Float[Tensor, "c d h w"]:
    """White noise of the key smoothed by a Gaussian: variance 1 everywhere, also at the border."""
    kernels = [_kernel(s) for s in sigma]
    grown = [n + len(k) - 1 for n, k in zip(shape[1:], kernels, strict=True)]
    x = randomness.normal((shape[0], *grown), *parts)
    for axis, kernel in enumerate(kernels):
        unit = kernel / kernel.square().sum().sqrt()
        x = _along(_band(unit, shape[axis + 1]), x, axis)
    return x.contiguous()


def identity(shape: tuple[int, int, int]) -> Float[Tensor, "3 d h w"]:
    """Voxel indices as coordinates."""
    axes = [torch.arange(n, dtype=torch.float32) for n in shape]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"))


def sample(
    x: Float[Tensor, "c d h w"], points: Float[Tensor, "3 e i j"], *, border: bool = True
) -> Float[Tensor, "c e i j"]:
    """Linear interpolation at voxel coordinates; outside, the border value goes on, or zero."""
    size = torch.tensor(x.shape[1:]).to(points).view(3, 1, 1, 1)
    unit = 2 * points / (size - 1).clamp_min(1) - 1
    grid = unit.flip(0).permute(1, 2, 3, 0)[None]  # grid_sample wants the last axis first
    mode = "border" if border else "zeros"
    return F.grid_sample(x[None], grid, padding_mode=mode, align_corners=True)[0]


def warp(
    x: Float[Tensor, "c d h w"], displacement: Float[Tensor, "3 d h w"]
) -> Float[Tensor, "c d h w"]:
    """x(p + u(p)) by linear interpolation."""
    return sample(x, identity(tuple(x.shape[1:])) + displacement)


def exponential(velocity: Float[Tensor, "3 d h w"]) -> Float[Tensor, "3 d h w"]:
    """Displacement of exp(v), for v in voxels."""
    # Steps below a quarter of a voxel keep the composition of linear interpolations invertible.
    steps = max(0, math.ceil(math.log2(max(4 * float(velocity.abs().amax()), 1.0))))
    u = velocity / 2**steps
    for _ in range(steps):
        u = u + warp(u, u)
    return u
