r"""Random regions of a volume, for recipes that hide a part of it.

box     one box with its centre in the foreground (pDDPM)
blobs   where smooth noise is high, a keyed share of the foreground (inpainting)
cells   random cells of a grid (masked autoencoders, MAD-AD)
slabs   every other slab across one axis (MMCCD's strips)
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor

from volumediff import randomness
from volumediff.data._fields import smooth_noise

__all__ = ["Blobs", "Box", "Cells", "Region", "Slabs"]


@dataclass(frozen=True)
class Region(ABC):
    """A keyed mask of a volume."""

    @abstractmethod
    def __call__(
        self,
        foreground: Bool[Tensor, "1 d h w"],
        *,
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> Bool[Tensor, "1 d h w"]:
        """The region, never empty.

        Raises:
            ValueError: there is no foreground
        """


@dataclass(frozen=True)
class Box(Region):
    """A box around a foreground voxel, moved into the volume where it would stick out.

    Arguments:
        side_mm: side of the box

    References:
        Behrendt et al. (2023), Patched Diffusion Models for Unsupervised Anomaly Detection in
        Brain MRI, arXiv:2303.03758: 48 voxels of 2 mm
    """

    side_mm: float = 96.0

    def __post_init__(self) -> None:
        if not self.side_mm > 0:
            raise ValueError(f"side_mm: expected a positive length, got {self.side_mm}.")

    def __call__(
        self,
        foreground: Bool[Tensor, "1 d h w"],
        *,
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> Bool[Tensor, "1 d h w"]:
        """The box."""
        places = _places(foreground)
        centre = places[int(randomness.uniform(key, "box") * len(places))].tolist()
        m = torch.zeros_like(foreground)
        window = []
        for middle, n, mm in zip(centre, foreground.shape[1:], spacing_mm, strict=True):
            side = min(max(round(self.side_mm / mm), 1), n)
            first = min(max(middle - side // 2, 0), n - side)
            window.append(slice(first, first + side))
        m[:, window[0], window[1], window[2]] = True
        return m


@dataclass(frozen=True)
class Blobs(Region):
    """The highest values of smooth noise, a share of the foreground that is drawn evenly.

    The correlation length is drawn log-uniformly, so that regions are one large or many small.

    Arguments:
        share: smallest and largest share of the foreground
        size_mm: smallest and largest correlation length

    References:
        Liang et al. (2025), IterMask3D, arXiv:2504.04911: random Gaussian blobs at three scales
    """

    share: tuple[float, float] = (0.02, 0.3)
    size_mm: tuple[float, float] = (6.0, 24.0)

    def __post_init__(self) -> None:
        shares = 0 < self.share[0] <= self.share[1] < 1
        if not shares or not 0 < self.size_mm[0] <= self.size_mm[1]:
            raise ValueError(
                "expected share = (low, high) in (0, 1) and size_mm = (low, high) above 0, got "
                f"{self.share} and {self.size_mm}."
            )

    def __call__(
        self,
        foreground: Bool[Tensor, "1 d h w"],
        *,
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> Bool[Tensor, "1 d h w"]:
        """The blobs, inside the foreground."""
        _places(foreground)
        low, high = self.size_mm
        size = low * (high / low) ** randomness.uniform(key, "size")
        share = self.share[0] + (self.share[1] - self.share[0]) * randomness.uniform(key, "share")
        d, h, w = (size / mm for mm in spacing_mm)
        noise = smooth_noise((1, *foreground.shape[1:]), (d, h, w), key, "blobs")
        count = max(1, round(share * int(foreground.sum())))
        m = torch.zeros_like(foreground).flatten()
        m[noise.masked_fill(~foreground, -math.inf).flatten().topk(count).indices] = True
        return m.view_as(foreground)


@dataclass(frozen=True)
class Cells(Region):
    """Cells of a grid, each hidden or not by its own draw; all of them if none was drawn.

    Arguments:
        share: probability that a cell is hidden
        cell_mm: side of a cell

    References:
        He et al. (2022), Masked Autoencoders, arXiv:2111.06377: 0.75 of the patches
    """

    share: float = 0.75
    cell_mm: float = 16.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or not self.cell_mm > 0:
            raise ValueError(
                f"expected share in (0, 1] and cell_mm above 0, got {self.share} and "
                f"{self.cell_mm}."
            )

    def __call__(
        self,
        foreground: Bool[Tensor, "1 d h w"],
        *,
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> Bool[Tensor, "1 d h w"]:
        """The cells, over the whole volume."""
        _places(foreground)
        sides = [max(round(self.cell_mm / mm), 1) for mm in spacing_mm]
        grid = [math.ceil(n / s) for n, s in zip(foreground.shape[1:], sides, strict=True)]
        draws = torch.rand(grid, generator=randomness.generator(key, "cells"))
        hidden = draws < self.share
        for axis, (n, s) in enumerate(zip(foreground.shape[1:], sides, strict=True)):
            hidden = hidden.repeat_interleave(s, axis).narrow(axis, 0, n)
        m = hidden[None].to(foreground.device)
        return m if bool(m.any()) else torch.ones_like(foreground)


@dataclass(frozen=True)
class Slabs(Region):
    """Slabs of equal thickness with gaps between them, across a drawn axis, from a drawn place.

    Arguments:
        thickness_mm: of a slab
        gap_mm: between two slabs

    References:
        Liang et al. (2023), Modality Cycles with Masked Conditional Diffusion for Unsupervised
        Anomaly Segmentation in MRI, arXiv:2308.16150: one strip of 16 pixels, moved by 2
    """

    thickness_mm: float = 16.0
    gap_mm: float = 16.0

    def __post_init__(self) -> None:
        if not self.thickness_mm > 0 or not self.gap_mm > 0:
            raise ValueError(
                f"expected thickness_mm and gap_mm above 0, got {self.thickness_mm} and "
                f"{self.gap_mm}."
            )

    def __call__(
        self,
        foreground: Bool[Tensor, "1 d h w"],
        *,
        spacing_mm: tuple[float, float, float],
        key: int,
    ) -> Bool[Tensor, "1 d h w"]:
        """The slabs, over the whole volume."""
        _places(foreground)
        axis = int(randomness.uniform(key, "axis") * 3)
        period = self.thickness_mm + self.gap_mm
        start = randomness.uniform(key, "start") * period
        place = (torch.arange(foreground.shape[axis + 1]) * spacing_mm[axis] + start) % period
        inside = place < self.thickness_mm
        if not bool(inside.any()):  # thinner than a voxel
            inside[int(place.argmin())] = True
        shape = [1, 1, 1, 1]
        shape[axis + 1] = -1
        return inside.view(shape).expand_as(foreground).clone().to(foreground.device)


def _places(foreground: Tensor) -> Tensor:
    places = foreground[0].nonzero()
    if not len(places):
        raise ValueError("foreground: expected some voxels, got none; check the mask.")
    return places
