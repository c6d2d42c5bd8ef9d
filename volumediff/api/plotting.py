"""Figures of results: axial slices as a radiologist sees them, the patient's right on the left."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Shaped

from volumediff.data.grid import Grid
from volumediff.findings.written import Written, channels_on
from volumediff.inference.segment import Segmented

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["localization_figure", "segmentation_figure"]

Slice = Shaped[np.ndarray, "h d"]
INCH = 2.4  # width of one picture
# Display range of intensities: single bright voxels do not darken the rest.
PERCENTILES = (0.5, 99.5)


def localization_figure(written: Written, *, slices: int) -> "Figure":
    """A row per slice: image, pseudo-healthy image where there is one, map, mask on the image."""
    image = next(iter(written.images.values()))
    healthy = next(iter(written.healthy.values()), None)
    columns = ["image", *(["pseudo-healthy"] if healthy is not None else []), "map"]
    columns += ["mask"] if written.mask is not None else []
    chosen = _slices(np.where(written.foreground, written.map, -np.inf).max((0, 1)), slices)
    figure, rows = _canvas(columns, chosen, written.grid)
    low, high = np.percentile(image, PERCENTILES)
    aspect, top = _aspect(written.grid), max(float(written.map.max()), 1e-12)
    for row, k in zip(rows, chosen, strict=True):
        for axes, name in zip(row, columns, strict=True):
            if name == "map":
                axes.imshow(
                    _seen(written.map[:, :, k]), cmap="inferno", vmin=0, vmax=top, aspect=aspect
                )
                continue
            shown = healthy if name == "pseudo-healthy" and healthy is not None else image
            axes.imshow(_seen(shown[:, :, k]), cmap="gray", vmin=low, vmax=high, aspect=aspect)
            if name == "mask" and written.mask is not None and written.mask[:, :, k].any():
                outline = _seen(written.mask[:, :, k].astype(float))
                axes.contour(outline, levels=[0.5], colors="red", linewidths=1)
    return figure


def segmentation_figure(
    segmented: Segmented, labels: Shaped[np.ndarray, "d h w"], *, slices: int
) -> "Figure":
    """A row per slice: image, and labels on it."""
    grid = segmented.grid.record.canonical
    image = next(iter(channels_on(segmented.examination.images, grid).values()))
    chosen = _slices((labels > 0).sum((0, 1)).astype(float), slices)
    figure, rows = _canvas(["image", "labels"], chosen, grid)
    aspect = _aspect(grid)
    low, high = np.percentile(image, PERCENTILES)
    for row, k in zip(rows, chosen, strict=True):
        for axes in row:
            axes.imshow(_seen(image[:, :, k]), cmap="gray", vmin=low, vmax=high, aspect=aspect)
        shown = np.ma.masked_equal(_seen(labels[:, :, k]), 0)
        row[1].imshow(shown, cmap="tab10", vmin=0, vmax=10, alpha=0.6, aspect=aspect)
    return figure


def _slices(scores: Float[np.ndarray, "w"], count: int) -> list[int]:
    """Slices of the highest scores, not side by side, the most superior first."""
    gap = max(1, len(scores) // (4 * count))
    chosen: list[int] = []
    for k in np.argsort(-scores, kind="stable").tolist():
        if len(chosen) < count and all(abs(k - other) >= gap for other in chosen):
            chosen.append(k)
    return sorted(chosen, reverse=True)


def _seen(plane: Slice) -> Slice:
    """A slice along R, A as it is looked at: from below, anterior on top."""
    return plane.T[::-1, ::-1]


def _aspect(grid: Grid) -> float:
    """Height of a voxel by its width, as `_seen` turns it."""
    right, anterior, _ = grid.spacing_mm
    return anterior / right


def _canvas(
    columns: Sequence[str], chosen: Sequence[int], grid: Grid
) -> tuple["Figure", Sequence[Sequence["Axes"]]]:
    """A figure without pyplot: nothing global is opened, and nothing has to be closed."""
    from matplotlib.figure import Figure

    size = (INCH * len(columns), INCH * len(chosen))
    figure = Figure(figsize=size, layout="constrained")
    rows = figure.subplots(len(chosen), len(columns), squeeze=False)
    for row, k in zip(rows, chosen, strict=True):
        for axes, name in zip(row, columns, strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            if k == chosen[0]:
                axes.set_title(name, fontsize=9)
        height = float(grid.affine[2] @ [0, 0, k, 1])
        row[0].set_ylabel(f"z = {height:.1f} mm", fontsize=8)
    return figure, rows
