r"""What an autoencoder keeps of a volume, and how small a lesion may be for its latents.

With :math:`\hat x = D(E(x))`, errors are those of :math:`\hat x - x` in the foreground. Lesions
are spheres :math:`m` of several diameters at places drawn from a key, brighter or darker by two
standard deviations of the foreground. What comes back of one is

.. math:: r = \frac{D(E(x + c\,m)) - D(E(x))}{c},

and its Dice is that of :math:`r > 1/2` with m around the place. It is an oracle, which knows the
volume without the lesion and the contrast: localization in these latents cannot expect more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.randomness import uniform

__all__ = ["CodecLimits", "SphereDice", "codec_limits"]

DIAMETERS_MM = (30.0, 20.0, 12.0, 8.0, 5.0, 3.0)
COPIES = 3  # of each size, where there is room
MARGIN_MM = 6.0  # around a sphere, where what comes back of it is looked for
CONTRAST = 2.0  # standard deviations of the foreground
LEAST_DICE = 0.5  # of a lesion that counts as kept
RANGE = 2.0  # intensities are in [-1, 1]

Window = tuple[slice, ...]


@dataclass(frozen=True)
class SphereDice:
    """What comes back of spheres of one size.

    Arguments:
        diameter_mm: of the spheres
        volume_ml: mean volume of their voxels
        dice: mean over the spheres
        spheres: how many found a place
    """

    diameter_mm: float
    volume_ml: float
    dice: float
    spheres: int


@dataclass(frozen=True)
class CodecLimits:
    """The limits of an autoencoder in one volume.

    Arguments:
        mean_absolute_error: in the foreground, of intensities in [-1, 1]
        psnr_db: peak signal-to-noise ratio there, for the range 2
        spheres: by size, the largest first
    """

    mean_absolute_error: float
    psnr_db: float
    spheres: tuple[SphereDice, ...]

    @property
    def smallest(self) -> SphereDice | None:
        """The smallest size that is kept (Dice of at least 0.5), and all larger ones with it."""
        kept = None
        for sphere in self.spheres:
            if sphere.dice < LEAST_DICE:
                break
            kept = sphere
        return kept

    @property
    def warnings(self) -> list[str]:
        """The limit in a sentence; none where all sizes that found a place are kept."""
        kept = self.smallest
        if not self.spheres or kept == self.spheres[-1]:
            return []
        if kept is None:
            size = f"{self.spheres[0].diameter_mm:g} mm"
            return [f"The autoencoder keeps no lesion of up to {size}: none can be expected here."]
        return [
            f"The autoencoder keeps lesions from {kept.diameter_mm:g} mm ({kept.volume_ml:.2g} "
            "ml) on: smaller ones cannot be expected to be found."
        ]

    def facts(self) -> dict[str, Any]:
        """For the record beside a map."""
        return {**asdict(self), "smallest_ml": self.smallest and self.smallest.volume_ml}


@torch.no_grad()
def codec_limits(
    back: Callable[[Tensor], Tensor],
    x: Float[Tensor, "1 c d h w"],
    *,
    foreground: Bool[Tensor, "1 1 d h w"],
    spacing_mm: tuple[float, float, float],
    key: int,
) -> CodecLimits:
    """The limits in one volume; takes two passes through the autoencoder.

    Arguments:
        back: D(E(x)), of volumes of the same shape
        x: intensities in [-1, 1]
        foreground: where spheres may lie, and errors count; some voxels
        spacing_mm: along d, h, w
        key: of their places
    """
    inside = foreground.expand_as(x)
    own = back(x).float()
    errors = (own - x)[inside].double()
    mean_square = float((errors**2).mean())
    values = x[inside]
    contrast = CONTRAST * float(values.std())
    placed = _placed(foreground[0, 0].cpu().numpy(), spacing_mm, key)
    spheres: tuple[SphereDice, ...] = ()
    if placed and contrast > 0:
        changed = x.clone()
        middle = (float(values.min()) + float(values.max())) / 2
        signs = []
        for sphere in placed:
            m = torch.from_numpy(sphere.mask).to(x.device)
            window = changed[(..., *sphere.window)]
            # away from the end of the range that is nearer, as lesions can be seen
            signs.append(1.0 if float(window[..., m].mean()) < middle else -1.0)
            window += signs[-1] * contrast * m
        returned = ((back(changed).float() - own) / contrast).mean(dim=1)[0].cpu().numpy()
        dices = [
            sphere.dice(sign * returned[sphere.window])
            for sphere, sign in zip(placed, signs, strict=True)
        ]
        spheres = _by_size(placed, dices, math.prod(spacing_mm) / 1000)
    return CodecLimits(
        mean_absolute_error=float(errors.abs().mean()),
        psnr_db=10 * math.log10(RANGE**2 / mean_square) if mean_square > 0 else math.inf,
        spheres=spheres,
    )


@dataclass(frozen=True, eq=False)
class _Sphere:
    """A sphere in a window around it that no other sphere reaches into."""

    diameter_mm: float
    window: Window
    mask: Bool[np.ndarray, "a b c"]

    def dice(self, returned: Float[np.ndarray, "a b c"]) -> float:
        found = returned > 0.5
        total = int(found.sum()) + int(self.mask.sum())
        return 2 * int((found & self.mask).sum()) / total


def _placed(
    foreground: Bool[np.ndarray, "d h w"], spacing_mm: tuple[float, float, float], key: int
) -> list[_Sphere]:
    """Spheres in the foreground whose windows are apart, the largest first."""
    from scipy import ndimage

    depth = ndimage.distance_transform_edt(np.pad(foreground, 1), sampling=spacing_mm)
    depth = depth[1:-1, 1:-1, 1:-1]
    found: list[_Sphere] = []
    for diameter in DIAMETERS_MM:
        radius = diameter / 2
        half = [math.ceil((radius + MARGIN_MM) / s) for s in spacing_mm]
        for copy in range(COPIES):
            free = depth >= radius
            for other in found:  # whose window this one's must not meet
                free[_widened(other.window, half, foreground.shape)] = False
            places = np.flatnonzero(free)
            if not len(places):
                break
            at = places[int(uniform(key, "sphere", f"{diameter:g}", copy) * len(places))]
            centre = np.unravel_index(at, foreground.shape)
            point = tuple(slice(int(c), int(c) + 1) for c in centre)
            window = _widened(point, half, foreground.shape)
            found.append(_Sphere(diameter, window, _ball(centre, window, radius, spacing_mm)))
    return found


def _widened(window: Window, half: Sequence[int], shape: Sequence[int]) -> Window:
    """A window with so many voxels more on both sides of each axis, within the volume."""
    return tuple(
        slice(max(0, part.start - n), min(size, part.stop + n))
        for part, n, size in zip(window, half, shape, strict=True)
    )


def _ball(
    centre: Sequence[Any],
    window: Window,
    radius_mm: float,
    spacing_mm: tuple[float, float, float],
) -> Bool[np.ndarray, "a b c"]:
    axes = [
        ((np.arange(part.start, part.stop) - int(c)) * s) ** 2
        for part, c, s in zip(window, centre, spacing_mm, strict=True)
    ]
    return axes[0][:, None, None] + axes[1][:, None] + axes[2] <= radius_mm**2


def _by_size(
    placed: Sequence[_Sphere], dices: Sequence[float], voxel_ml: float
) -> tuple[SphereDice, ...]:
    found = []
    for diameter in dict.fromkeys(sphere.diameter_mm for sphere in placed):
        own = [i for i, sphere in enumerate(placed) if sphere.diameter_mm == diameter]
        volume = float(np.mean([placed[i].mask.sum() for i in own])) * voxel_ml
        dice = float(np.mean([dices[i] for i in own]))
        found.append(SphereDice(diameter, volume, dice, len(own)))
    return tuple(found)
