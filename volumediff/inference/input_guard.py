"""Inputs that a run was plainly not trained for are refused, unless the caller forces them.

Only what is beyond doubt is refused here: CT given to a run of MRI, and volumes of which the run's
shape cuts away more than a small part. The reason and the way out are in the message.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from volumediff.data.preprocessing import Prepared
from volumediff.data.volume import Volume
from volumediff.errors import DataError

__all__ = ["MOST_CROPPED", "crop_objection", "ct_objection", "looks_like_ct", "permitted"]

# Share of the foreground that the run's shape may cut away.
MOST_CROPPED = 0.05
# Air is -1000 HU and the lung -700; MRI has no voxels of that sign and size, whatever its scale.
AIR_HU = -500.0
# Least share of voxels below: scans of the body and the head are surrounded by air.
LEAST_AIR = 0.05
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
                f"on {', '.join(channels)}; give MRI, or take it nevertheless with --force "
                "(Python: force=True)."
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
        "coarser spacing_mm, or accept the loss with --force (Python: force=True)."
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
