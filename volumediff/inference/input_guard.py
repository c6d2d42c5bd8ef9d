r"""Inputs that a run was plainly not trained for are refused, unless the caller forces them.

Only what is beyond doubt is refused here: CT given to a run of MRI, volumes of which the run's
shape cuts away more than a small part, and volumes that have nothing in common with the healthy
mean of the run's training volumes. The reason and the way out are in the message. What is only
doubtful is a warning beside the result.

With x a prepared volume, a the healthy mean and F the voxels that both show, the likeness is the
correlation of x and a over F, that over the half of F where a is brightest, white and grey matter
in T1w, and the overlap of both foregrounds. Runs that keep no healthy mean compare nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.raw_map import Localization
from volumediff.data.intensity import BACKGROUND
from volumediff.data.preprocessing import MOST_CROPPED, Prepared
from volumediff.data.volume import Volume
from volumediff.errors import DataError
from volumediff.metrics.detection import rates

__all__ = [
    "Likeness",
    "crop_objection",
    "ct_objection",
    "flood_warnings",
    "likeness",
    "likeness_objection",
    "likeness_warnings",
    "looks_like_ct",
    "permitted",
]

# Air is -1000 HU and the lung -700; MRI has no voxels of that sign and size, whatever its scale.
AIR_HU = -500.0
# Least share of voxels below: scans of the body and the head are surrounded by air.
LEAST_AIR = 0.05
# Correlation with the healthy mean, of 41 files: T1w of six scanners .39 and more, of five of them
# and aligned .54 and more (two gliomas .55 and .80); FLAIR .25 to .64; T2w, DWI, ADC and CT below
# .2. Other contrasts of one run of T1w are all that was looked at.
LEAST_CORRELATION = 0.22
# Of the brighter half alone: aligned T1w .15 and more, FLAIR up to .38 and half of them below.
LEAST_TISSUE = 0.12
LEAST_OVERLAP = 0.75
SHOWN = 0.05  # above the background, of the healthy mean's foreground
FEWEST = 100  # voxels that both must show
# A mask of this share of the foreground, and so many times that of any healthy volume.
FLOOD, FLOOD_RATIO = 0.02, 3.0
# Names of MRI contrasts as data sets write them, in lower case.
MRI = {"t1", "t1w", "t1c", "t1ce", "t1gd", "t2", "t2w", "flair", "pd", "pdw", "dwi", "adc", "mr"}


def looks_like_ct(volume: Volume) -> bool:
    """Whether a volume has the air of a CT, in Hounsfield units."""
    return float(np.mean(volume.array < AIR_HU)) >= LEAST_AIR


def ct_objection(images: Mapping[str, Volume], channels: Sequence[str] | None) -> str | None:
    """Objects to CT where the run names its channels and all of them are contrasts of MRI.

    Arguments:
        images: of the examination, by channel
        channels: of the run; None, or names that are not known, let everything pass
    """
    if not channels or not all(name.lower() in MRI for name in channels):
        return None
    for name, volume in images.items():
        if looks_like_ct(volume):
            return (
                f"{volume.path or name}: looks like CT in Hounsfield units, the run was trained "
                f"on {', '.join(channels)}; give MRI, or take it nevertheless with "
                "the option force."
            )
    return None


def crop_objection(ready: Prepared, case: str) -> str | None:
    """Objects if more than `MOST_CROPPED` of the foreground is outside the prepared grid."""
    if ready.cropped <= MOST_CROPPED:
        return None
    shape = " x ".join(map(str, ready.x.shape[1:]))
    spacing = " x ".join(f"{s:.3g}" for s in ready.spacing_mm)
    return (
        f"{case}: the run's {shape} voxels of {spacing} mm cut away {ready.cropped:.1%} of the "
        f"foreground, at most {MOST_CROPPED:.0%} is accepted; train with a larger shape or a "
        "coarser spacing_mm, or accept the loss with the option force."
    )


def permitted(objection: str | None, *, force: bool) -> list[str]:
    """The objection that is overruled, for the record; nothing where there is none.

    Raises:
        DataError: there is one, and it is not overruled
    """
    if objection is None:
        return []
    if not force:
        raise DataError(objection)
    return [objection]


@dataclass(frozen=True)
class Likeness:
    """How much a prepared volume has in common with the healthy mean.

    Arguments:
        correlation: over the voxels that both show, -1 to 1
        tissue: over the half of them where the mean is brightest
        overlap: of both foregrounds, intersection over union
    """

    correlation: float
    tissue: float
    overlap: float


def likeness(ready: Prepared, mean: Float[Tensor, "c d h w"] | None) -> Likeness | None:
    """The likeness; None without a mean of this shape."""
    if mean is None or mean.shape != ready.x.shape:
        return None
    shown = (mean > BACKGROUND + SHOWN).any(0)
    inside = ready.foreground[0].to(mean.device)
    both = inside & shown
    if int(both.sum()) < FEWEST:
        return Likeness(0.0, 0.0, 0.0)
    x, a = ready.x.to(mean)[:, both], mean[:, both]
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


def likeness_objection(alike: Likeness | None, case: str) -> str | None:
    """Objects to volumes that have next to nothing in common with those of the training."""
    if alike is None or alike.correlation >= LEAST_CORRELATION:
        return None
    return (
        f"{case}: has next to nothing in common with the volumes that the run was trained on "
        f"(correlation {alike.correlation:.2f} with their healthy mean, expected at least "
        f"{LEAST_CORRELATION:g}): another contrast, another organ, or not aligned; give such a "
        "volume, or take it nevertheless with the option force."
    )


def likeness_warnings(alike: Likeness | None) -> list[str]:
    """What differs from the volumes of the training, in sentences."""
    if alike is None:
        return []
    said = []
    if alike.tissue < LEAST_TISSUE:
        said.append(
            "White and grey matter do not have the contrast of the volumes that the run was "
            f"trained on (correlation {alike.tissue:.2f}): is this another contrast, such as "
            "FLAIR in place of T1w?"
        )
    if alike.overlap < LEAST_OVERLAP:
        said.append(
            f"The foreground overlaps by {alike.overlap:.0%} with that of the volumes that the "
            "run was trained on: the volume is not aligned as they are, or shows more or less."
        )
    return said


def flood_warnings(
    found: Localization, foreground: Bool[Tensor, "1 d h w"], calibration: Calibration | None
) -> list[str]:
    """Says so where far more is marked than in any healthy volume."""
    if found.mask is None or found.threshold is None or calibration is None:
        return []
    if not calibration.each:
        return []
    share = float(found.mask.sum()) / max(int(foreground.sum()), 1)
    healthy = [rates(h, found.threshold).fpr for h in calibration.each]
    if share <= max(FLOOD, FLOOD_RATIO * max(healthy)):
        return []
    return [
        f"The map is above the threshold in {share:.1%} of the foreground, in healthy volumes in "
        f"{min(healthy):.1%} to {max(healthy):.1%}: a large lesion, or a volume unlike those that "
        "the run knows."
    ]
