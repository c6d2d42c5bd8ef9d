r"""Brain extraction: the template's brain, brought to a head and fitted to what is seen there.

    template's brain ─ inverse affine ─▶ d_t ─┐
    tissue near it ─ opened, closed ─▶ d_b ───┴─▶ a d_t + (1 - a) (d_b - m) < 0

d_t and d_b are signed distances in mm, negative inside. Tissue is what lies on the side of grey
and white matter of the half-way value between grey matter and fluid, all three read in the head
where the template has them; so the contrast does not matter. Opening cuts the bridges to dura,
eyes and muscles; closing spans sulci, ventricles and dark or bright lesions; m is the fluid around
the brain, which is seen as part of it. The mean of two signed distances is shape-based
interpolation: where the image says nothing, the template decides.

References:
    Smith (2002), Fast robust automated brain extraction (tissue threshold within a surface)
    Raya and Udupa (1990), Shape-based interpolation of multidimensional objects
"""

import numpy as np
from jaxtyping import Bool, Float

from volumediff.data.alignment_geometry import Alignment
from volumediff.data.alignment_template import Template, coarsened
from volumediff.data.grid import Grid

__all__ = ["extracted_brain"]

WORKING_MM = 2.0
# Affinely aligned brains differ from the template by up to about this much.
REACH_MM = 10.0
# This deep in the template's brain everything is brain, so that lesions do not cut holes.
SURE_MM = 8.0
# Dura and the bridges of veins and nerves are thinner than twice this.
OPENING_MM = 4.0
# Sulci and the cisterns at the base are narrower than twice this.
CLOSING_MM = 10.0
FLUID_MM = 3.0
TEMPLATE_SHARE = 0.7
SMOOTHING_MM = 2.0
# Shares of grey and white matter above which a voxel tells their intensity.
GREY, WHITE, FLUID = 0.7, 0.9, 0.05
LEAST = 50  # voxels that an intensity is read from


def extracted_brain(
    x: Float[np.ndarray, "d h w"],
    grid: Grid,
    *,
    matrix: Float[np.ndarray, "4 4"],
    template: Template,
) -> Bool[np.ndarray, "d h w"]:
    """Where the brain is in a head; empty where the template's brain lies outside of the image.

    Arguments:
        x: intensities of the head
        grid: its voxels
        matrix: from its millimetres to the template's
        template: with or without tissue maps; without, its brain is brought back as it is
    """
    spacing = [max(s, WORKING_MM) for s in grid.spacing_mm]
    seen, coarse = coarsened(x, grid, spacing_mm=(spacing[0], spacing[1], spacing[2]))
    way = Alignment(Grid(coarse.shape, coarse.affine), template.grid, matrix)
    inside = way.back(template.object[None].astype(np.float32), fill=0.0)[0] > 0.5
    if not inside.any():
        return np.zeros(grid.shape, bool)
    level = _distance(inside, coarse)
    if template.tissue is not None:
        tissue = way.back(template.tissue, fill=0.0)
        level = _fitted(seen, coarse, level, tissue)
    fine = Alignment(Grid(grid.shape, grid.affine), coarse, np.eye(4))
    return fine.back(level[None].astype(np.float32), fill=float(level.max()))[0] < 0


def _fitted(
    x: Float[np.ndarray, "d h w"],
    grid: Grid,
    level: Float[np.ndarray, "d h w"],
    tissue: Float[np.ndarray, "2 d h w"],
) -> Float[np.ndarray, "d h w"]:
    """The signed distance after the image has been looked at."""
    from scipy import ndimage

    grey, white = tissue
    inside = level < 0
    places = (
        (grey > GREY) & inside,
        (white > WHITE) & inside,
        (grey + white < FLUID) & (level < -WORKING_MM),
    )
    if min(int(place.sum()) for place in places) < LEAST:
        return level
    g, w, c = (float(np.median(x[place])) for place in places)
    # on the side of the tissue, and not as far beyond it as fat in T1w
    low, high = min(g, w), max(g, w)
    low, high = ((g + c) / 2, high + abs(w - g)) if c < g else (low - abs(w - g), (g + c) / 2)
    sure = level < -SURE_MM
    shown = ((x > low) & (x < high) & (level < REACH_MM)) | sure
    core = ndimage.distance_transform_edt(shown, sampling=grid.spacing_mm) > OPENING_MM
    parts, _ = ndimage.label(core)
    sizes = np.bincount(parts[sure], minlength=parts.max() + 1)
    sizes[0] = 0
    if not sizes.any():
        return level
    core = parts == sizes.argmax()
    reach = OPENING_MM + min(grid.spacing_mm) / 2
    opened = shown & (ndimage.distance_transform_edt(~core, sampling=grid.spacing_mm) <= reach)
    wide = ndimage.distance_transform_edt(~opened, sampling=grid.spacing_mm) <= CLOSING_MM
    closed = ndimage.distance_transform_edt(wide, sampling=grid.spacing_mm) > CLOSING_MM
    brain = ndimage.binary_fill_holes(closed | opened)
    own = _distance(brain, grid) - FLUID_MM
    both = TEMPLATE_SHARE * level + (1 - TEMPLATE_SHARE) * own
    smooth = [SMOOTHING_MM / s for s in grid.spacing_mm]
    return ndimage.gaussian_filter(both, smooth)


def _distance(mask: Bool[np.ndarray, "d h w"], grid: Grid) -> Float[np.ndarray, "d h w"]:
    """Signed distance in mm, negative inside; voxels at the border are half a voxel from it."""
    from scipy import ndimage

    half = min(grid.spacing_mm) / 2
    outside = ndimage.distance_transform_edt(~mask, sampling=grid.spacing_mm)
    inside = ndimage.distance_transform_edt(mask, sampling=grid.spacing_mm)
    return np.where(mask, half - inside, outside - half)
