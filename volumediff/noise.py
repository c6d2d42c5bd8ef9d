r"""Noise fields: what training corrupts volumes with, drawn for the whole volume from a key.

A field has zero mean and unit variance in every voxel, over draws, whatever its structure, so that
a level means the same signal-to-noise ratio with every noise; it is drawn on the volume and goes
through `space.noise`. Reverse steps draw the same kind. Which one a model knows is settled by its
training: other noise is not recognised as noise and stays in the volume.

    gaussian   white
    simplex    octaves of gradient noise on the simplex lattice (AnoDDPM)
    coarse     white on a coarse grid, interpolated (DAE)
    pyramid    white on ever coarser grids, added (ANDi)

Lengths are in voxels: crops of a volume then see the noise that the whole volume has.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.randomness import generator, normal

__all__ = ["CoarseNoise", "GaussianNoise", "Noise", "Pyramid", "Simplex"]

Key = int | str


@dataclass(frozen=True)
class Noise(ABC):
    """A keyed random field of zero mean and unit variance.

    Class attributes:
        kind: family of the field, `white` where voxels are independent; a model knows the noise of
            one kind, and methods name the kind that they are about
        drawn_on_cpu: whether a device has no part in the drawing, so that a loader may do it
    """

    kind: ClassVar[str] = ""
    drawn_on_cpu: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        shape: tuple[int, int, int, int],
        *parts: Key,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "c d h w"]:
        """The field of a volume (c, d, h, w); it depends on the parts of the key alone."""


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """White Gaussian noise."""

    kind: ClassVar[str] = "white"
    drawn_on_cpu: ClassVar[bool] = True

    def __call__(
        self,
        shape: tuple[int, int, int, int],
        *parts: Key,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "c d h w"]:
        """Independent voxels."""
        return normal(shape, *parts, device=device)


@dataclass(frozen=True)
class CoarseNoise(Noise):
    """White noise on a grid of every so many voxels, interpolated linearly between them.

    Arguments:
        cell: voxels between the nodes; 16 nodes along 128 voxels in the DAE

    References:
        Kascenas et al. (2022), Denoising Autoencoders for Unsupervised Anomaly Detection in Brain
        MRI; the published noise has sigma 0.2 and is no diffusion: here the level says how much
    """

    kind: ClassVar[str] = "coarse"
    drawn_on_cpu: ClassVar[bool] = True
    cell: int = 8

    def __post_init__(self) -> None:
        if self.cell < 1:
            raise ValueError(f"cell: expected at least 1 voxel, got {self.cell}.")

    def __call__(
        self,
        shape: tuple[int, int, int, int],
        *parts: Key,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "c d h w"]:
        """The interpolated grid."""
        return _interpolated(shape, self.cell, *parts).to(device)


@dataclass(frozen=True)
class Pyramid(Noise):
    r"""White noise on grids of every 1, 2, 4, ... voxels,

    .. math:: n = \sum_i \gamma^i n_i \Big/ \sqrt{\sum_i \gamma^{2i}}.

    Arguments:
        levels: number of grids
        discount: gamma, weight of a grid relative to the next finer one

    References:
        Frotscher et al. (2023), Unsupervised Anomaly Detection using Aggregated Normative
        Diffusion (ANDi), arXiv:2312.01904; its grids shrink by random factors, ours by 2
    """

    kind: ClassVar[str] = "pyramid"
    drawn_on_cpu: ClassVar[bool] = True
    levels: int = 6
    discount: float = 0.8

    def __post_init__(self) -> None:
        if self.levels < 1 or not 0 < self.discount <= 1:
            raise ValueError(
                f"expected levels >= 1 and discount in (0, 1], got {self.levels} and "
                f"{self.discount}."
            )

    def __call__(
        self,
        shape: tuple[int, int, int, int],
        *parts: Key,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "c d h w"]:
        """The weighted sum."""
        weights = [self.discount**i for i in range(self.levels)]
        total = torch.zeros(shape)
        for i, weight in enumerate(weights):
            total += weight * _interpolated(shape, 2**i, *parts, "level", i)
        return (total / math.hypot(*weights)).to(device)


def _interpolated(
    shape: tuple[int, int, int, int], cell: int, *parts: Key
) -> Float[Tensor, "c d h w"]:
    """White noise on the nodes 0, cell, 2 cell, ..., with unit variance between them, too."""
    maps = [_hats(n, cell) for n in shape[1:]]
    field = normal((shape[0], *(m.shape[1] for m in maps)), *parts)
    return torch.einsum("cxyz,dx,hy,wz->cdhw", field, *maps)


def _hats(n: int, cell: int) -> Float[Tensor, "n m"]:
    """Weights of the nodes at each of n voxels, squares summing to 1: white in, unit variance."""
    place = torch.arange(n) / cell
    nodes = torch.arange(math.ceil((n - 1) / cell) + 1)
    hats = (1 - (place[:, None] - nodes).abs()).clamp(min=0)
    return hats / hats.norm(dim=1, keepdim=True)


# Midpoints of the edges of a cube: E[g gᵀ] = 2/3 I.
_EDGES = torch.tensor(
    [
        [a if i == j else b if i == k else 0.0 for i in range(3)]
        for j, k in ((0, 1), (0, 2), (1, 2))
        for a in (-1.0, 1.0)
        for b in (-1.0, 1.0)
    ],
    device="cpu",  # also where modules are built on the meta device
)
_TABLE = 252  # entries of the permutation; a multiple of the 12 gradients, so that all are equal
_POINTS = 2**16  # evaluated at a time
_RADIUS = 0.5  # r²: the largest ball about a corner that lies within the simplices that meet there
# Variance at a random place, 2 · 2/3 · ∫ (r² - |d|²)⁸ |d|² dd: two corners per unit of volume.
_VARIANCE = (
    (4 / 3)
    * (2 * math.pi)
    * _RADIUS**10.5
    * math.exp(math.lgamma(2.5) + math.lgamma(9) - math.lgamma(11.5))
)


@dataclass(frozen=True)
class Simplex(Noise):
    r"""Octaves of simplex noise: smooth random fields of ever shorter wavelength,

    .. math:: n(x) &= \sum_i p^i\, s_i(2^i x / \lambda) \Big/ \sqrt{\sum_i p^{2i}}, \\
              s(x) &\propto \sum_{k=0}^{3} \max(0, r^2 - |d_k|^2)^4\; g_k \cdot d_k,

    with d_k from the four corners of the simplex of x to x and g_k a pseudo-random gradient of the
    corner. Each octave has its own gradients, offset and rotation, so that no axis and no origin
    is preferred, and the division makes its variance 1 over draws. A single draw keeps an offset
    of the longest octaves. Gradients, offsets and rotations are drawn on the CPU; the sum is made
    on the device and differs between devices by rounding alone.

    Arguments:
        octaves: number of wavelengths
        persistence: p, amplitude of an octave relative to the one before
        wavelength: lambda, longest wavelength in voxels; the published 64 is for 256 voxels, a
            quarter of the side

    References:
        Wyatt et al. (2022), AnoDDPM, CVPR workshops: 6 octaves, 0.8, 64, sliced from 3D; not
        normalised there (standard deviation about 0.44)
        Perlin (2001), Noise hardware; Gustavson (2005), Simplex noise demystified
    """

    kind: ClassVar[str] = "simplex"
    octaves: int = 6
    persistence: float = 0.8
    wavelength: float = 64.0

    def __post_init__(self) -> None:
        if self.octaves < 1 or not 0 < self.persistence <= 1 or not self.wavelength > 0:
            raise ValueError(
                "expected octaves >= 1, persistence in (0, 1] and wavelength > 0, got "
                f"{self.octaves}, {self.persistence} and {self.wavelength}."
            )

    def __call__(
        self,
        shape: tuple[int, int, int, int],
        *parts: Key,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "c d h w"]:
        """The sum of the octaves, each channel with its own."""
        weights = [self.persistence**i for i in range(self.octaves)]
        total = torch.zeros(shape, device=device)
        for channel, field in enumerate(total):
            for i, weight in enumerate(weights):
                source = generator(*parts, "simplex", channel, i)
                period = self.wavelength / 2**i
                for planes, values in _simplex(shape[1:], period, source, device):
                    field[planes].add_(values, alpha=weight)
        return total / math.hypot(*weights)


def _simplex(
    shape: tuple[int, int, int],
    period: float,
    source: torch.Generator,
    device: torch.device | str,
) -> Iterator[tuple[slice, Float[Tensor, "n h w"]]]:
    """One octave of unit variance, a few planes at a time."""
    table = torch.randperm(_TABLE, generator=source).repeat(2).to(device)
    turn, _ = torch.linalg.qr(torch.randn((3, 3), generator=source))
    offset = torch.rand(3, generator=source) * _TABLE
    d, h, w = (torch.arange(n, device=device) / period for n in shape)
    planes = max(_POINTS // (len(h) * len(w)), 1)
    for start in range(0, len(d), planes):
        part = slice(start, start + planes)
        place = (
            d[part, None, None] * float(turn[0, i])
            + h[:, None] * float(turn[1, i])
            + w * float(turn[2, i])
            + float(offset[i])
            for i in range(3)
        )
        yield part, _gradient_noise(*place, table)


def _gradient_noise(
    x: Float[Tensor, "*s"], y: Float[Tensor, "*s"], z: Float[Tensor, "*s"], table: Tensor
) -> Float[Tensor, "*s"]:
    """Simplex noise at points; p -> p + sum(p) / 3 maps the lattice to the integers."""
    skew = (x + y + z) / 3
    corner = [torch.floor(v + skew) for v in (x, y, z)]
    back = sum(corner) / 6
    x, y, z = (v - c + back for v, c in zip((x, y, z), corner, strict=True))
    # From the corner the simplex is walked along the axes in the order of falling coordinates.
    xy, xz, yz = (x >= y).int(), (x >= z).int(), (y >= z).int()
    ranks = (2 - xy - xz, 1 + xy - yz, xz + yz)
    total = torch.zeros_like(x)
    for k in range(4):
        steps = [(rank < k).to(x.dtype) for rank in ranks]
        rest = [v - s + k / 6 for v, s in zip((x, y, z), steps, strict=True)]
        # modulo the table before the numbers become integers: floats divide faster
        i, j, l = (  # noqa: E741
            (c + s - _TABLE * torch.floor((c + s) / _TABLE)).long()
            for c, s in zip(corner, steps, strict=True)
        )
        edge = table[i + table[j + table[l]]] % len(_EDGES)
        near = (_RADIUS - sum(v * v for v in rest)).clamp(min=0).square().square()
        slopes = (v * e.to(x.device)[edge] for v, e in zip(rest, _EDGES.T, strict=True))
        total += near * sum(slopes)
    return total / math.sqrt(_VARIANCE)
