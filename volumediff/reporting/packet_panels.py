"""Pictures of one finding: three planes through its peak, one PNG per kind of volume.

Every picture has the axial, coronal and sagittal plane side by side in neurological convention:
the patient's left is on the left, anterior (axial) and superior are up, and in the sagittal plane
anterior is on the right. The letters say so in each plane, and a bar gives the scale. Equal
volumes give equal bytes.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Float

from volumediff.colours import gradient
from volumediff.reporting.scene import limits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CONVENTION", "Layer", "bar_mm", "draw"]

CONVENTION = (
    "Neurological convention: the patient's left (L) is on the left of axial and coronal planes; "
    "A anterior, P posterior, S superior, I inferior."
)
# The fixed axis of each plane, its name, and what lies left, right, below and above.
PLANES = (
    (2, "axial", "LRPA"),
    (1, "coronal", "LRIS"),
    (0, "sagittal", "PAIS"),
)
# Lengths of scale bars, of which the longest that is at most a third of the plane is taken.
BARS_MM = (1, 2, 5, 10, 20, 50, 100)
DPI = 100
EDGE = "#2fe0ff"  # of outlines, as in the viewer
# The map over the image is opaque from this share of its range on, and fades out below.
OPAQUE = 0.6


@dataclass(frozen=True, eq=False)
class Layer:
    """What one picture shows.

    Arguments:
        title: over the planes
        array: the volume
        colours: name of a matplotlib colour map, or of one of `colours.py`
        span: what becomes the first and the last colour
        base: drawn in grey below it, where the array is above the start of its span
    """

    title: str
    array: Float[np.ndarray, "d h w"]
    colours: str
    span: tuple[float, float]
    base: Float[np.ndarray, "d h w"] | None = None


def bar_mm(extent_mm: float) -> int:
    """Length of the scale bar of a plane of this width."""
    return max((b for b in BARS_MM if b <= extent_mm / 3), default=BARS_MM[0])


def draw(
    layer: Layer,
    at: tuple[int, int, int],
    *,
    spacing_mm: tuple[float, float, float],
    outline: Bool[np.ndarray, "d h w"] | None = None,
) -> bytes:
    """The PNG of a layer.

    Arguments:
        layer: what to show
        at: voxel that the planes meet in
        spacing_mm: voxel size along R, A, S
        outline: voxels to draw an edge around
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 3.5), facecolor="black")
    figure.suptitle(layer.title, color="white", fontsize=9, y=0.985)
    extents = [_extent(layer.array.shape, spacing_mm, axis) for axis, *_ in PLANES]
    # one scale for all planes: each gets the width of its own extent
    grid = figure.add_gridspec(
        1, 3, width_ratios=[w for w, _ in extents], left=0.01, right=0.99, bottom=0.02, top=0.86
    )
    for column, (axis, name, letters) in enumerate(PLANES):
        axes = figure.add_subplot(grid[column])
        _plane(axes, layer, at, axis, spacing_mm, outline)
        axes.set_title(name, color="#aab7c4", fontsize=8, pad=3)
        _letters(axes, letters)
        _bar(axes, extents[column][0])
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=DPI, facecolor="black", metadata={"Software": None})
    return buffer.getvalue()


def overlay(
    image: Float[np.ndarray, "d h w"], scores: Float[np.ndarray, "d h w"], *, title: str
) -> Layer:
    """A map over an image."""
    return Layer(title, scores, "inferno", limits(scores, floor=0.0), base=image)


def _extent(
    shape: Sequence[int], spacing_mm: tuple[float, float, float], axis: int
) -> tuple[float, float]:
    a, b = (i for i in range(3) if i != axis)
    return shape[a] * spacing_mm[a], shape[b] * spacing_mm[b]


def _plane(
    axes: "Axes",
    layer: Layer,
    at: tuple[int, int, int],
    axis: int,
    spacing_mm: tuple[float, float, float],
    outline: np.ndarray | None,
) -> None:
    width, height = _extent(layer.array.shape, spacing_mm, axis)
    place = {"extent": (0.0, width, 0.0, height), "origin": "lower", "interpolation": "nearest"}
    slab = layer.array.take(at[axis], axis=axis).T
    low, high = layer.span
    shown: dict = {"cmap": gradient(layer.colours), "vmin": low, "vmax": high}
    if layer.base is not None:
        dark, bright = limits(layer.base)
        base = layer.base.take(at[axis], axis=axis).T
        axes.imshow(base, cmap="gray", vmin=dark, vmax=bright, **place)
        unit = np.clip((slab - low) / max(high - low, 1e-12), 0, 1)
        shown["alpha"] = np.clip(unit / OPAQUE, 0, 1)
    axes.imshow(slab, **shown, **place)
    if outline is not None:
        mask = outline.take(at[axis], axis=axis).T
        a, b = (i for i in range(3) if i != axis)
        if min(mask.shape) > 1 and mask.any() and not mask.all():
            x = (np.arange(mask.shape[1]) + 0.5) * spacing_mm[a]
            y = (np.arange(mask.shape[0]) + 0.5) * spacing_mm[b]
            axes.contour(x, y, mask, levels=[0.5], colors=EDGE, linewidths=1.0)
    axes.set_aspect("equal")
    axes.set_axis_off()


def _letters(axes: "Axes", letters: str) -> None:
    left, right, low, high = letters
    style = {"color": "#cfd9e2", "fontsize": 8, "transform": axes.transAxes}
    axes.text(0.02, 0.5, left, ha="left", va="center", **style)
    axes.text(0.98, 0.5, right, ha="right", va="center", **style)
    axes.text(0.5, 0.02, low, ha="center", va="bottom", **style)
    axes.text(0.5, 0.98, high, ha="center", va="top", **style)


def _bar(axes: "Axes", width_mm: float) -> None:
    length, start = bar_mm(width_mm), 0.04 * width_mm
    bottom = 0.04 * axes.get_ylim()[1]
    axes.plot([start, start + length], [bottom, bottom], color="white", linewidth=2)
    axes.text(start, 1.6 * bottom, f"{length} mm", color="white", fontsize=7, va="bottom")
