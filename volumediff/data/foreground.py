"""Where the imaged object is, as opposed to air: the voxels that normalization and scores look at.

Three rules: `nonzero` for volumes whose background was set to 0 (skull-stripped or masked), `otsu`
for volumes with noise in the air, `body` for CT. `auto` takes what differs from the background
where the faces of the volume are of one value, such as 0 or, after a z-score of the whole volume,
some other number; else `otsu`. The last two keep the largest connected part and fill its holes,
also those open at the top, the bottom or an edge of the volume (slice by slice), so that dark
fluid and air-filled lungs belong to the foreground.

CT scanners pad what they have not seen with numbers far below air, which would draw the threshold
of Otsu down to between padding and air: padding counts as air.
"""

from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

__all__ = ["Rule", "background_of", "foreground", "otsu", "padding_of"]

Rule = Literal["auto", "nonzero", "otsu", "body"]

BODY_HU = -500.0  # half way between air (-1000 HU) and water (0 HU)
BINS = 256
# A face of a masked volume may touch the object; noise in air is nowhere exactly one number.
EQUAL_FACES = 0.5
# Nothing is below air, -1000 HU, but padding: -1024, -2000, -3024. This much of it is no noise.
LOWEST_HU, PADDING_HU, PADDING_SHARE = -1024.0, -1500.0, 0.01


def foreground(x: Float[np.ndarray, "d h w"], rule: Rule) -> Bool[np.ndarray, "d h w"]:
    """The foreground of one channel, in the file's own intensities."""
    if rule == "nonzero":
        return x != 0
    background = background_of(x)
    # air that a scanner has set to one value leaves the noise of the air around the patient
    emptied = background is not None and background > BODY_HU
    if emptied and (rule == "auto" or (rule == "body" and background == 0)):
        return x != np.float32(background)
    threshold = BODY_HU if rule == "body" else otsu(_without_padding(x))
    return _filled(_largest(x > threshold))


def background_of(x: Float[np.ndarray, "d h w"]) -> float | None:
    """The value that most voxels on the six faces have exactly; None where there is none.

    Through-plane faces of thin stacks do not count.
    """
    axes = [a for a in range(3) if x.shape[a] >= 0.5 * max(x.shape)]
    faces = np.concatenate([np.take(x, i, axis=a).ravel() for a in axes for i in (0, -1)])
    middle = np.partition(faces, len(faces) // 2)[len(faces) // 2]  # what half of them are
    for value in (np.float32(0), middle):
        if float((faces == value).mean()) >= EQUAL_FACES:
            return float(value)
    return None


def padding_of(x: Float[np.ndarray, "d h w"]) -> float | None:
    """The value that pads what a CT scanner has not seen; None where there is no padding."""
    low = float(x.min())
    if low > PADDING_HU or float((x == np.float32(low)).mean()) < PADDING_SHARE:
        return None
    return low


def _without_padding(x: Float[np.ndarray, "d h w"]) -> Float[np.ndarray, "d h w"]:
    return x if padding_of(x) is None else np.maximum(x, np.float32(LOWEST_HU))


def otsu(x: Float[np.ndarray, "d h w"]) -> float:
    r"""The threshold that maximises the variance between two classes,

    .. math:: \omega_0 \omega_1 (\mu_0 - \mu_1)^2,

    over a histogram of 256 bins up to the 99.9th percentile (bright vessels would coarsen it).

    References:
        Otsu (1979), A threshold selection method from gray-level histograms
    """
    high = np.percentile(x, 99.9)
    low = float(x.min())
    if not high > low:
        return low
    counts, edges = np.histogram(np.clip(x, low, high), bins=BINS, range=(low, float(high)))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1].astype(np.float64)
    above = counts.sum() - below
    first = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        gap = first[:-1] / below - (first[-1] - first[:-1]) / above
        between = np.nan_to_num(below * above * gap**2)
    return float(edges[1 + int(between.argmax())])


def _largest(mask: Bool[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
    from scipy import ndimage

    parts, count = ndimage.label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def _filled(mask: Bool[np.ndarray, "d h w"]) -> Bool[np.ndarray, "d h w"]:
    """Holes are parts of the background that reach no corner of a slice, in 3D or in one slice.

    Air around an object fills corners; a lung that the field of view cuts off reaches an edge.
    """
    from scipy import ndimage

    solid = ndimage.generate_binary_structure(3, 1)
    sliced = solid.copy()
    sliced[:, :, [0, 2]] = False  # no connection from slice to slice along w
    for structure in (solid, sliced):
        parts, count = ndimage.label(~mask, structure)
        outside = np.zeros(count + 1, bool)
        outside[parts[[0, 0, -1, -1], [0, -1, 0, -1]]] = True
        outside[0] = False  # part 0 is the mask itself
        mask = ~outside[parts]
    return mask
