"""Pictures of segmentations: labels in colours over the image, planes and samples side by side."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from volumediff.colours import UNCERTAIN, gradient, label_colour
from volumediff.data.label_names import label_name
from volumediff.reporting.scene import limits
from volumediff.reporting.segmentation_views import LabelView

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["label_picture", "samples_picture"]

OPACITY = 0.55
PER_ROW = 7
WIDTH = 11.2  # inches


def label_picture(view: LabelView) -> bytes:
    """PNG: three planes, a row each; image, truth, the methods, and the entropy of the first.

    Labels are filled with their colour; what the truth has is outlined in white in the others.
    """
    maps: dict[str, np.ndarray | None] = {"image": None, "truth": view.truth, **view.found}
    entropy = view.maps.get("entropy")
    columns = [*maps, *(["entropy"] if entropy is not None else [])]
    at, spacing = view.start(), view.spacing_mm
    planes = [(axis, [i for i in range(3) if i != axis]) for axis in (2, 1, 0)]
    size = [n * s for n, s in zip(view.image.shape, spacing, strict=True)]
    cell = WIDTH / max(len(columns), 4)
    heights = [cell * size[b] / size[a] for _, (a, b) in planes]
    figure = _black(cell * len(columns), sum(heights) + 0.3)
    grid = figure.subplots(3, len(columns), squeeze=False, height_ratios=heights)
    low, high = limits(view.image)
    for line, (axis, (a, b)) in zip(grid, planes, strict=True):
        aspect = spacing[b] / spacing[a]
        plane = view.image.take(at[axis], axis=axis)
        truth = view.truth.take(at[axis], axis=axis)
        for axes, name in zip(line, columns, strict=True):
            axes.set_axis_off()
            if name == "entropy" and name not in maps:
                assert entropy is not None, "the column is there"
                colours, top = gradient(UNCERTAIN), limits(entropy, floor=0.0)[1]
                shown = entropy.take(at[axis], axis=axis).T
                axes.imshow(shown, cmap=colours, vmin=0, vmax=top, origin="lower", aspect=aspect)
            else:
                labels = maps[name]
                cut = None if labels is None else labels.take(at[axis], axis=axis)
                axes.imshow(_coloured(plane, cut, low, high), origin="lower", aspect=aspect)
                if name not in ("image", "truth"):
                    _edges(axes, truth)
            if axis != 0:  # the patient's right is on the left, as in the viewer
                axes.invert_xaxis()  # last: what is drawn sets the limits
    for axes, name in zip(grid[0], columns, strict=True):
        axes.set_title(name, color="white", fontsize=8, loc="left", pad=2)
    _legend(figure, [view.truth, *view.found.values()], view.label_names)
    return _png(figure)


def samples_picture(view: LabelView) -> bytes:
    """PNG of one axial plane: readers and samples side by side, the truth outlined in white."""
    _, _, k = view.start()
    rows = math.ceil(len(view.samples) / PER_ROW)
    d, h = view.image.shape[:2]
    aspect = view.spacing_mm[1] / view.spacing_mm[0]
    width = WIDTH / PER_ROW
    figure = _black(WIDTH, rows * (width * h * aspect / d + 0.3))
    grid = figure.subplots(rows, PER_ROW, squeeze=False)
    low, high = limits(view.image)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, (name, labels) in zip(grid.flat, view.samples.items(), strict=False):
        plane = _coloured(view.image[:, :, k], labels[:, :, k], low, high)
        axes.imshow(plane, origin="lower", aspect=aspect)
        _edges(axes, view.truth[:, :, k])
        axes.invert_xaxis()
        axes.set_title(name, color="white", fontsize=7, loc="left", pad=2)
    return _png(figure)


def _coloured(plane: np.ndarray, labels: np.ndarray | None, low: float, high: float) -> np.ndarray:
    """RGB of a plane with its labels over it, transposed for drawing."""
    from matplotlib.colors import to_rgb

    grey = np.clip((plane - low) / max(high - low, 1e-12), 0, 1)
    rgb = np.repeat(grey.T[..., None], 3, axis=-1)
    for value in np.unique(labels) if labels is not None else ():
        if value:
            inside = labels.T == value
            rgb[inside] = (1 - OPACITY) * rgb[inside] + OPACITY * np.array(
                to_rgb(label_colour(int(value)))
            )
    return rgb


def _legend(figure: "Figure", maps: Sequence[np.ndarray], names: Mapping[int, str]) -> None:
    """What the colours stand for, where there are several."""
    from matplotlib.patches import Patch

    values = sorted({int(v) for labels in maps for v in np.unique(labels)} - {0})
    if len(values) > 1:
        handles = [Patch(color=label_colour(v), label=label_name(v, names)) for v in values]
        figure.legend(
            handles=handles,
            loc="outside lower left",
            ncols=10,
            frameon=False,
            labelcolor="white",
            fontsize=7,
        )


def _edges(axes: "Axes", truth: np.ndarray) -> None:
    for value in np.unique(truth):
        mask = truth == value
        if value and min(mask.shape) > 1 and mask.any() and not mask.all():
            axes.contour(mask.T, levels=[0.5], colors="white", linewidths=0.6)


def _black(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", facecolor="black")
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01, wspace=0.01, hspace=0.01)
    return figure


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, facecolor="black", metadata={"Software": None})
    return buffer.getvalue()
