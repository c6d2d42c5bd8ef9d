r"""Real lesion masks pasted into healthy volumes, with random looks.

Of a mask m of a folder, cut to its bounding box and put at another place, a soft copy is made,

.. math:: P = f \; G_σ * m, \qquad s' = (1 - P)\, s + P\, (μ + δ\, n),

with a Gaussian that softens the border, a smooth random field f ∈ [1 - fading, 1] by which lesions
fade in places, and a brightness μ that is drawn: no contrast is relied on.

References:
    Chalcroft et al. (2025), SynthStroke, Machine Learning for Biomedical Imaging 2025:014
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from volumediff import randomness
from volumediff.data._draws import between, check_range
from volumediff.data._fields import gaussian, smooth_noise
from volumediff.data.corruptions._base import Corruption
from volumediff.data.corruptions._place import foreground_voxel, inside
from volumediff.data.layouts._files import volumes
from volumediff.data.volume import read
from volumediff.errors import DataError

__all__ = ["Pasted"]

Spacing = tuple[float, float, float]

_FADING_MM = 10.0  # size of the places where a lesion fades
_LEAST = 0.05  # P below which a voxel is outside of the lesion
_TRIES = 20  # masks that may have no voxel in the foreground where they are put


@dataclass(frozen=True)
class Pasted(Corruption):
    """A real lesion mask at a random place, with a random brightness.

    Arguments:
        masks: folder of lesion masks (*.nii, *.nii.gz), 0 outside; their size in mm is kept
        edge_mm: smallest and largest σ
        fading: largest share by which a lesion fades in places
        brightness: smallest and largest μ, of the signal in [0, 1]
        deviation: smallest and largest δ
        least: smallest |μ - s| to the mean signal of the place: a lesion can be seen
    """

    kind: ClassVar[str] = "pasted"
    masks: Path
    edge_mm: tuple[float, float] = (0.5, 2.0)
    fading: float = 0.5
    brightness: tuple[float, float] = (0.0, 1.0)
    deviation: tuple[float, float] = (0.0, 0.05)
    least: float = 0.08

    def __post_init__(self) -> None:
        check_range("edge_mm", self.edge_mm, 0.0, 20.0)
        check_range("brightness", self.brightness, 0.0, 1.0)
        check_range("deviation", self.deviation, 0.0, 1.0)
        if not 0 <= self.fading < 1:
            raise ValueError(f"fading: expected a share in [0, 1), got {self.fading}.")
        if not 0 <= self.least <= 0.5:
            raise ValueError(f"least: expected a number in [0, 0.5], got {self.least}.")

    def __call__(
        self,
        x: Float[Tensor, "c d h w"],
        foreground: Bool[Tensor, "1 d h w"],
        *,
        donor: Callable[[int], Tensor],
        spacing_mm: Spacing,
        key: int,
    ) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
        """The volume with the lesion, and P.

        Raises:
            DataError: the folder has no masks, or an empty one
        """
        m = self._placed(foreground, spacing_mm, key)
        edge = between(self.edge_mm, key, "edge")
        p = gaussian(m, tuple(edge / mm for mm in spacing_mm)).clamp(0, 1)
        if self.fading:
            sigma = tuple(_FADING_MM / mm for mm in spacing_mm)
            field = smooth_noise(tuple(p.shape), sigma, key, "fading")
            # the normal distribution's own curve makes it uniform
            p = p * (1 - self.fading * torch.special.ndtr(field))
        p = (p * (p > _LEAST) * foreground).to(x)
        s, channels = (x + 1) / 2, []
        for c, signal in enumerate(s):
            mean = float((signal * p[0]).sum() / p.sum())
            deviation = between(self.deviation, key, "deviation", c)
            n = randomness.normal(tuple(signal.shape), key, "signal", c).to(x)
            look = self._brightness(mean, key, c) + deviation * n
            channels.append(torch.lerp(signal, look, p[0]))
        changed = torch.where(p > 0, 2 * torch.stack(channels) - 1, x)
        return inside(x, changed, p, foreground)

    def _brightness(self, mean: float, key: int, channel: int) -> float:
        """μ, moved away from the mean of the place where it is too near."""
        drawn = between(self.brightness, key, "brightness", channel)
        if abs(drawn - mean) >= self.least:
            return drawn
        return mean + self.least if mean < 0.5 else mean - self.least

    def _placed(
        self, foreground: Bool[Tensor, "1 d h w"], spacing_mm: Spacing, key: int
    ) -> Float[Tensor, "1 d h w"]:
        """A mask, mirrored or not, on the grid; its middle is a voxel of the foreground."""
        found = _masks(self.masks)
        whole = torch.zeros(foreground.shape)
        for i in range(_TRIES):
            path = found[int(randomness.uniform(key, "mask", i) * len(found))]
            mask, size = _cut(path)
            if randomness.uniform(key, "mirror", i) < 0.5:
                mask = mask.flip(1)
            shape = [
                max(round(n * a / b), 1)
                for n, a, b in zip(mask.shape[1:], size, spacing_mm, strict=True)
            ]
            small = F.adaptive_avg_pool3d if math.prod(shape) < mask.numel() else _interpolated
            patch = small(mask[None], shape)[0]
            centre = foreground_voxel(foreground, key, "centre", i)
            _put(whole, patch, centre)
            if bool(((whole > 0.5) & foreground).any()):
                return whole
            whole.zero_()
        whole[0][centre] = 1.0  # a lesion of one voxel, as small masks are on coarse grids
        return whole


def _interpolated(mask: Tensor, shape: list[int]) -> Tensor:
    return F.interpolate(mask, size=shape, mode="trilinear")


def _put(whole: Float[Tensor, "1 d h w"], patch: Tensor, centre: tuple[int, int, int]) -> None:
    """Writes a patch around a voxel, as far as it is in the volume."""
    to, of = [], []
    for middle, n, size in zip(centre, patch.shape[1:], whole.shape[1:], strict=True):
        first = middle - n // 2
        low, high = max(first, 0), min(first + n, size)
        to.append(slice(low, high))
        of.append(slice(low - first, high - first))
    whole[(slice(None), *to)] = patch[(slice(None), *of)]


@lru_cache(maxsize=4)
def _masks(folder: Path) -> tuple[Path, ...]:
    """The masks of a folder, by name."""
    found = volumes(folder)
    if not found:
        raise DataError(f"{folder}: expected lesion masks (*.nii.gz), found none.")
    return tuple(found)


@lru_cache(maxsize=512)
def _cut(path: Path) -> tuple[Float[Tensor, "1 d h w"], Spacing]:
    """A mask within its bounding box, and its voxel size."""
    volume = read(path)
    mask = volume.array[0] > 0
    places = np.argwhere(mask)
    if not len(places):
        raise DataError(f"{path}: expected a lesion, got an empty mask; take the file out.")
    window = tuple(slice(a, b + 1) for a, b in zip(places.min(0), places.max(0), strict=True))
    d, h, w = volume.grid.spacing_mm
    return torch.from_numpy(mask[window].astype(np.float32))[None], (d, h, w)
