r"""What a prepared volume is like, in numbers that tell another contrast, organ, place or scanner.

With x a prepared volume, a the mean of a run's training volumes and F the voxels that both show,
the likeness is the correlation of x and a over F, that over the half of F where a is brightest,
white and grey matter in T1w, and the overlap of both foregrounds. It is measured on voxels of
about 3 mm: anatomy is seen there, and a mean of volumes at 1 mm is a few megabytes.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.data.intensity import BACKGROUND

__all__ = [
    "LEVELS",
    "Likeness",
    "VolumeMeasures",
    "coarse",
    "foreground_of",
    "likeness",
    "measured",
]

# Of the quantiles of intensities inside the foreground.
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
COARSE_MM = 3.0
SHOWN = 0.05  # above the background, of the mean's foreground
FEWEST = 100  # voxels that both must show


@dataclass(frozen=True)
class Likeness:
    """How much a prepared volume has in common with the mean of others.

    Arguments:
        correlation: over the voxels that both show, -1 to 1
        tissue: over the half of them where the mean is brightest
        overlap: of both foregrounds, intersection over union
    """

    correlation: float
    tissue: float
    overlap: float


@dataclass(frozen=True)
class VolumeMeasures:
    """One prepared volume.

    Arguments:
        foreground_ml: volume of what is imaged
        quantiles: of each channel, intensities in [-1, 1] at `LEVELS` inside the foreground
    """

    foreground_ml: float
    quantiles: tuple[tuple[float, ...], ...]


def measured(
    x: Float[Tensor, "c d h w"],
    foreground: Bool[Tensor, "1 d h w"],
    spacing_mm: tuple[float, float, float],
) -> VolumeMeasures:
    """The measures of a volume; without a foreground its intensities are those of all voxels."""
    inside = foreground[0] if foreground.any() else foreground[0].logical_not()
    return VolumeMeasures(
        int(foreground.sum()) * math.prod(spacing_mm) / 1000,
        tuple(tuple(np.quantile(c[inside].numpy(), LEVELS).tolist()) for c in x.float().cpu()),
    )


def coarse(
    x: Float[Tensor, "c d h w"],
    foreground: Bool[Tensor, "1 d h w"],
    spacing_mm: tuple[float, float, float],
) -> tuple[Float[Tensor, "c e i v"], Bool[Tensor, "1 e i v"]]:
    """Volume and foreground as means of blocks of voxels with edges of about 3 mm."""
    steps = [max(1, round(COARSE_MM / edge)) for edge in spacing_mm]

    def means(a: Tensor) -> Tensor:
        return F.avg_pool3d(a.float().cpu(), steps, ceil_mode=True, count_include_pad=False)

    return means(x), means(foreground) >= 0.5


def foreground_of(mean: Float[Tensor, "c e i v"]) -> Bool[Tensor, "1 e i v"]:
    """Where a mean shows something in any channel."""
    return (mean > BACKGROUND + SHOWN).any(0, keepdim=True)


def likeness(
    x: Float[Tensor, "c e i v"],
    foreground: Bool[Tensor, "1 e i v"],
    mean: Float[Tensor, "c e i v"],
) -> Likeness:
    """The likeness of a coarse volume to a mean on its grid."""
    shown, inside = foreground_of(mean)[0], foreground[0]
    both = inside & shown
    if int(both.sum()) < FEWEST:
        return Likeness(0.0, 0.0, 0.0)
    x, a = x[:, both], mean[:, both]
    bright = a >= a.median()
    return Likeness(
        _correlation(x, a),
        _correlation(x[bright], a[bright]),
        float(both.sum() / (inside | shown).sum()),
    )


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x.double() - x.double().mean(), y.double() - y.double().mean()
    size = float(x.norm() * y.norm())
    return float((x * y).sum()) / size if size > 0 else 0.0
