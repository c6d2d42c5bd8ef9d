"""What an image shows, looked at before anybody computes with it.

A file may be intact and hold nothing: a failed export is all 0, or has one bright voxel. Or it
holds something else than the rule of normalization takes for granted: Hounsfield units that are
stored with an offset, padding far below air, a background that is not 0. `check`, training and
inference ask the same question here; an error refuses the volume in all of them.
"""

import numpy as np
from jaxtyping import Bool, Float

from volumediff.data.foreground import background_of, otsu, padding_of
from volumediff.data.intensity import Intensity
from volumediff.data.remarks import Remark

__all__ = ["content_remarks", "cover_remark"]

# Fewer voxels than this, or than this share of all, are no organ: at 1 mm it is 1.7 ml of 256^3.
FEWEST_VOXELS, FEWEST_SHARE = 8, 1e-4
KEY = "data.preprocessing.intensity"
# Soft tissue lies at 0 to 100 HU: with the usual offset of 1024 its median is in this range.
OFFSET_TISSUE = (700.0, 1400.0)
# Above air in HU, whatever its noise; and the share of a window that a volume must fill.
AIR_HU, NARROW = -500.0, 0.05
# A label of lesions that covers more of the object than this is likely to be the object itself.
MUCH = 1 / 3


def content_remarks(
    x: Float[np.ndarray, "d h w"], inside: Bool[np.ndarray, "d h w"], intensity: Intensity
) -> list[Remark]:
    """Remarks on one channel; errors say why it must not be used.

    Arguments:
        x: intensities of the file
        inside: the foreground, as `intensity` sees it
        intensity: the rule of normalization
    """
    low, high = float(x.min()), float(x.max())
    if low == high:
        text = f"shows no foreground: every voxel is {low:g}; check that it is not empty"
        return [Remark("error", "blank", text)]
    count = int(np.count_nonzero(inside))
    if count < max(FEWEST_VOXELS, FEWEST_SHARE * x.size):
        text = (
            f"shows no foreground but {count} of {x.size} voxels; check that it is not empty, or "
            f"choose another rule with {KEY}.foreground"
        )
        return [Remark("error", "nearly_blank", text)]
    found = []
    if intensity.hounsfield:
        found += _no_hounsfield(x, inside, intensity)
    elif low < AIR_HU < 0 < high and not _centred(x, inside):
        text = f"values from {low:g} to {high:g} look like HU; {KEY}=window keeps their meaning"
        found.append(Remark("info", "looks_like_ct", text))
    padding = padding_of(x)
    if padding is not None:
        share = float((x == np.float32(padding)).mean())
        text = f"{share:.0%} of the voxels are padding of {padding:g}, which counts as air"
        found.append(Remark("info", "padding", text))
    background = background_of(x)
    if background not in (None, 0.0) and padding is None:
        text = (
            f"the background is {background:g} and not 0; it is taken as outside where the rule "
            f"{KEY}.foreground is auto"
        )
        found.append(Remark("info", "background", text))
    return found


def cover_remark(
    label: Bool[np.ndarray, "d h w"], inside: Bool[np.ndarray, "d h w"]
) -> Remark | None:
    """A warning on a label that covers much of the object; None for others."""
    share = np.count_nonzero(label & inside) / max(np.count_nonzero(inside), 1)
    if share <= MUCH:
        return None
    text = (
        f"covers {share:.0%} of the foreground: if it is a mask of the brain or the body, it is "
        "no label of lesions; take it away or name it brain_mask"
    )
    return Remark("warning", "label_covers", text)


def _no_hounsfield(
    x: Float[np.ndarray, "d h w"], inside: Bool[np.ndarray, "d h w"], intensity: Intensity
) -> list[Remark]:
    """Why values are no Hounsfield units; what fits a window is what its author wants to see."""
    first, *_, last = intensity.limits(x, inside)
    low, high = float(x.min()), float(x.max())
    bright = x[x > otsu(x)] if low > AIR_HU else x[:0]
    middle = float(np.median(bright)) if bright.size else 0.0
    reason = None
    if middle > last and OFFSET_TISSUE[0] <= middle <= OFFSET_TISSUE[1]:
        reason = "the offset of 1024 is missing, export with the rescale intercept"
    elif high - low < NARROW * (last - first):
        reason = "the window holds them in a few greys"
    if reason is None:
        return []
    text = f"expected HU, got {low:g} to {high:g}: {reason}, or use {KEY}=percentile"
    return [Remark("error", "units", text)]


def _centred(x: Float[np.ndarray, "d h w"], inside: Bool[np.ndarray, "d h w"]) -> bool:
    """Whether values lie about zero in the foreground, too, as phases and field maps do."""
    return float(np.percentile(x[inside], 25)) < AIR_HU / 2
