"""Previews during training: the middle slices of volumes, one row per volume."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from torch import Tensor

__all__ = ["PreviewRow", "middle_slices", "write_slices"]


@dataclass(frozen=True)
class PreviewRow:
    """What there is to see of a volume.

    Arguments:
        title: above it
        slices: the middle one along each axis, intensities from -1 to 1
    """

    title: str
    slices: tuple[np.ndarray, np.ndarray, np.ndarray]


def middle_slices(title: str, volume: Float[Tensor, "c d h w"]) -> PreviewRow:
    """The middle slices of the first channel."""
    image = volume[0].detach().float().cpu().numpy()
    d, h, w = (image.take(n // 2, axis=axis) for axis, n in enumerate(image.shape))
    return PreviewRow(title, (d, h, w))


def write_slices(path: Path, previews: Sequence[PreviewRow]) -> None:
    """Writes a PNG with a row for each volume."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 2.5 * len(previews)), layout="constrained")
    grid = figure.subplots(len(previews), 3, squeeze=False)
    for row, preview in zip(grid, previews, strict=True):
        for axes, image in zip(row, preview.slices, strict=True):
            # Transposed and with the origin below, so that superior or anterior is up.
            axes.imshow(image.T, cmap="gray", vmin=-1, vmax=1, origin="lower")
            axes.set_axis_off()
        row[0].set_title(preview.title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    figure.savefig(partial, dpi=90)
    partial.replace(path)
