"""Translations in the report: middle slices of what was measured, what was drawn, and the gap."""

import io
from collections.abc import Mapping, Sequence

import numpy as np

from volumediff.data.cases import Case
from volumediff.data.foreground import foreground
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.volume import read
from volumediff.evaluation.translation import TranslationEvaluation
from volumediff.metrics.image_similarity import unit_range
from volumediff.outputs.translation_files import translations_in

__all__ = ["translation_pictures"]

MOST = 4  # cases


def translation_pictures(
    results: Sequence[TranslationEvaluation], measured: Mapping[str, Case], policy: ReadPolicy
) -> list[tuple[str, bytes]]:
    """Caption and PNG of the first cases, channel by channel: an axial slice through the middle
    of the object, every image in [0, 1] as for the metrics."""
    folders = [translations_in(r.folder) for r in results]
    found = []
    names = [n for n in sorted(folders[0]) if n in measured][:MOST] if results else []
    for name in names:
        case = measured[name]
        for channel in folders[0][name]:
            x = read(case.images[channel], policy=policy).array[0]
            inside = foreground(x, "auto")
            middle = int(np.median(np.nonzero(inside)[2]))
            truth = unit_range(x, inside)[:, :, middle]
            drawn = []
            for result, folder in zip(results, folders, strict=True):
                y = unit_range(read(folder[name][channel]).array[0], inside)[:, :, middle]
                drawn.append((result.method, y))
            found.append((f"{case.id}, {channel}", _picture(truth, drawn)))
    return found


def _picture(truth: np.ndarray, drawn: Sequence[tuple[str, np.ndarray]]) -> bytes:
    """The measured slice, then above each method's, below its distance from the measured one."""
    from matplotlib.figure import Figure

    columns = 1 + len(drawn)
    figure = Figure(figsize=(2.2 * columns, 4.8), layout="constrained")
    grid = figure.subplots(2, columns, squeeze=False)
    grid[0, 0].imshow(truth.T, cmap="gray", vmin=0, vmax=1, origin="lower")
    grid[0, 0].set_title("measured", fontsize=8)
    for i, (method, y) in enumerate(drawn, start=1):
        grid[0, i].imshow(y.T, cmap="gray", vmin=0, vmax=1, origin="lower")
        grid[0, i].set_title(method, fontsize=8)
        grid[1, i].imshow(np.abs(y - truth).T, cmap="magma", vmin=0, vmax=0.5, origin="lower")
        grid[1, i].set_title("absolute difference", fontsize=8)
    for axes in grid.flat:
        axes.set_axis_off()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=90)
    return content.getvalue()
