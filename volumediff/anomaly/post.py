r"""Post-processing in millimetres, so that voxel size does not change what is kept.

The order is fixed, whatever the order in a row: erode the foreground, median, smooth, threshold,
open, close, remove small components, keep
the largest. Each component knows its `rank` in it; those from `MASK` on act on the mask.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from volumediff.anomaly._filters import smooth
from volumediff.component import Component
from volumediff.metrics.components import labelled, without_small
from volumediff.tunable import Tunable, tunable

__all__ = [
    "MASK",
    "Close",
    "Erode",
    "LargestComponent",
    "Median",
    "MinComponent",
    "Open",
    "Post",
    "Smooth",
]

MASK = 10  # rank of the threshold
Spacing = tuple[float, float, float]


@dataclass(frozen=True)
class Post(Component, ABC):
    """One step of post-processing, of the map (`rank < MASK`) or of the mask.

    `idempotent` says whether a second time changes nothing.
    """

    rank: ClassVar[int]
    idempotent: ClassVar[bool] = False

    @abstractmethod
    def __call__(
        self,
        value: Shaped[Tensor, "b 1 d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Shaped[Tensor, "b 1 d h w"]:
        """The processed map or mask."""


@dataclass(frozen=True)
class Erode(Post):
    """Sets the map to 0, "as expected", within a distance of the rim of the foreground.

    Residuals pile up at the rim, where registration and skull stripping err. What lies beyond the
    field of view is background.

    Arguments:
        distance_mm: depth of the rim; 3 to 4 mm for brains (Behrendt et al., 2023)
    """

    rank: ClassVar[int] = 0
    idempotent: ClassVar[bool] = True
    distance_mm: float = 3.0

    def __call__(
        self,
        value: Shaped[Tensor, "b 1 d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Shaped[Tensor, "b 1 d h w"]:
        """The map without its rim."""
        from scipy.ndimage import distance_transform_edt  # heavy import

        result = value.clone()
        for i, inside in enumerate(foreground[:, 0].cpu().numpy()):
            depth = distance_transform_edt(np.pad(inside, 1), sampling=spacing_mm)
            rim = torch.from_numpy(depth[1:-1, 1:-1, 1:-1] <= self.distance_mm)
            result[i, 0][rim.to(value.device)] = 0
        return result


@dataclass(frozen=True)
class Median(Post):
    """Median filter of the map over a ball; anything with less than half of the ball disappears.

    Arguments:
        radius_mm: a radius of 2 mm removes blobs below about 60 mm³ at 1 mm voxels
    """

    rank: ClassVar[int] = 1
    radius_mm: float = tunable(2.0, Tunable.WIDTH)

    def __call__(
        self,
        value: Shaped[Tensor, "b 1 d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Shaped[Tensor, "b 1 d h w"]:
        """The median-filtered map, zero outside the foreground."""
        from scipy.ndimage import median_filter  # heavy import

        ball = _ball(self.radius_mm, spacing_mm)
        inside = (value * foreground)[:, 0].cpu().numpy()
        done = [median_filter(v, footprint=ball, mode="constant", cval=0) for v in inside]
        return torch.from_numpy(np.stack(done)[:, None]).to(value) * foreground


def _ball(radius_mm: float, spacing_mm: Spacing) -> np.ndarray:
    axes = []
    for spacing in spacing_mm:
        reach = int(radius_mm / spacing + 1e-6)
        axes.append(np.arange(-reach, reach + 1) * spacing)
    d, h, w = np.meshgrid(*axes, indexing="ij")
    return d**2 + h**2 + w**2 <= radius_mm**2 * (1 + 1e-6)


@dataclass(frozen=True)
class Smooth(Post):
    """Smooths the map with a Gaussian over the foreground.

    Arguments:
        sigma_mm: standard deviation
    """

    rank: ClassVar[int] = 2
    sigma_mm: float = tunable(2.0, Tunable.WIDTH)

    def __call__(
        self,
        value: Shaped[Tensor, "b 1 d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Shaped[Tensor, "b 1 d h w"]:
        """The smoothed map."""
        return smooth(value, sigma_mm=self.sigma_mm, spacing_mm=spacing_mm, foreground=foreground)


@dataclass(frozen=True)
class Open(Post):
    """Opens the mask, keeping what a ball within it reaches: spikes and sheets thinner than it go.

    Arguments:
        radius_mm: of the ball
    """

    rank: ClassVar[int] = MASK + 1
    idempotent: ClassVar[bool] = True
    radius_mm: float = 1.0

    def __call__(
        self,
        value: Shaped[Tensor, "b 1 d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Shaped[Tensor, "b 1 d h w"]:
        """The opened mask; beyond the field of view is background."""
        return _morphed(value, self.radius_mm, spacing_mm, grow=False)


@dataclass(frozen=True)
class Close(Post):
    """Closes the mask, filling what no ball outside it reaches: gaps and holes thinner than it.

    Arguments:
        radius_mm: of the ball
    """

    rank: ClassVar[int] = MASK + 2
    radius_mm: float = 1.0

    def __call__(
        self,
        value: Shaped[Tensor, "b 1 d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Shaped[Tensor, "b 1 d h w"]:
        """The closed mask, inside the foreground."""
        return _morphed(value, self.radius_mm, spacing_mm, grow=True) & foreground


def _morphed(value: Tensor, radius_mm: float, spacing_mm: Spacing, *, grow: bool) -> Tensor:
    """The mask grown first and shrunk then, or the other way round, by a ball."""
    # a margin of the ball's radius: a mask that touches the rim is grown beyond it, too
    margin = [(int(radius_mm / s) + 1,) * 2 for s in spacing_mm]
    inner = tuple(slice(a, -b) for a, b in margin)
    done = []
    for mask in value[:, 0].cpu().numpy():
        wide = np.pad(mask, margin)
        for growing in (grow, not grow):
            wide = _ball_of(wide, radius_mm, spacing_mm, grow=growing)
        done.append(wide[inner])
    return torch.from_numpy(np.stack(done)[:, None]).to(value.device)


def _ball_of(mask: np.ndarray, radius_mm: float, spacing_mm: Spacing, *, grow: bool) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt  # heavy import

    rest = ~mask if grow else mask
    if rest.all():  # nothing to measure a distance to
        return mask
    near = distance_transform_edt(rest, sampling=spacing_mm) <= radius_mm * (1 + 1e-6)
    return near if grow else mask & ~near


@dataclass(frozen=True)
class MinComponent(Post):
    """Removes components of the mask below a volume: the smallest finding of a method.

    The threshold `findings_per_volume` counts healthy findings from the same volume on, and the
    mask on the grid of a file is cleaned of smaller parts once more, so that every component of a
    mask is a finding.

    Arguments:
        volume_ml: smallest volume that stays, in millilitres
    """

    rank: ClassVar[int] = MASK + 3
    idempotent: ClassVar[bool] = True
    volume_ml: float = 0.5

    def __post_init__(self) -> None:
        if not self.volume_ml >= 0:
            raise ValueError(f"volume_ml: expected 0 or more millilitres, got {self.volume_ml}.")

    def __call__(
        self,
        value: Shaped[Tensor, "b 1 d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Shaped[Tensor, "b 1 d h w"]:
        """The mask without small components."""
        voxel_ml = spacing_mm[0] * spacing_mm[1] * spacing_mm[2] / 1000
        kept = [
            without_small(mask, volume_ml=self.volume_ml, voxel_ml=voxel_ml)
            for mask in value[:, 0].cpu().numpy()
        ]
        return torch.from_numpy(np.stack(kept)[:, None]).to(value.device)


@dataclass(frozen=True)
class LargestComponent(Post):
    """Keeps the largest 26-connected component of the mask; loses every other lesion."""

    rank: ClassVar[int] = MASK + 4
    idempotent: ClassVar[bool] = True

    def __call__(
        self,
        value: Shaped[Tensor, "b 1 d h w"],
        *,
        foreground: Bool[Tensor, "b 1 d h w"],
        spacing_mm: tuple[float, float, float],
    ) -> Shaped[Tensor, "b 1 d h w"]:
        """The component, the first of equal ones."""
        kept = []
        for mask in value[:, 0].cpu().numpy():
            labels, count = labelled(mask)
            sizes = np.bincount(labels.ravel(), minlength=2)[1:]
            kept.append((labels == 1 + sizes.argmax()) & bool(count))
        return torch.from_numpy(np.stack(kept)[:, None]).to(value.device)
