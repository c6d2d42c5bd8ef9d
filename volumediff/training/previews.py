"""Previews during training: the middle slices of volumes, one row per volume."""

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

__all__ = ["write_slices"]


def write_slices(
    path: Path, volumes: Sequence[Float[Tensor, "c d h w"]], titles: Sequence[str]
) -> None:
    """Writes a PNG with the middle slice along each axis; intensities from -1 to 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 2.5 * len(volumes)), layout="constrained")
    grid = figure.subplots(len(volumes), 3, squeeze=False)
    for row, volume, title in zip(grid, volumes, titles, strict=True):
        image = volume[0].detach().float().cpu().numpy()
        for axis, axes in enumerate(row):
            # Transposed and with the origin below, so that superior or anterior is up.
            slab = image.take(image.shape[axis] // 2, axis=axis).T
            axes.imshow(slab, cmap="gray", vmin=-1, vmax=1, origin="lower")
            axes.set_axis_off()
        row[0].set_title(title, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".partial-{path.name}")
    figure.savefig(partial, dpi=90)
    partial.replace(path)
