"""Curves and report of generated volumes: power by frequency, intensities, the table."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volumediff.evaluation.generation import GenerationEvaluation
from volumediff.evaluation.generation_case import LEVELS
from volumediff.evaluation.generation_summary import (
    copy_lines,
    generation_columns,
    generation_notes,
    generation_table,
)
from volumediff.reporting.page_frame import Chapter, framed
from volumediff.reporting.panel import figure_of
from volumediff.reporting.tables import bullets, legend, method_table, metrics_of
from volumediff.storage.atomic import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_generation_curves", "write_generation_page"]

BAND = (5, 95)  # percentiles of the volumes


def write_generation_curves(
    folder: Path, results: Sequence[GenerationEvaluation]
) -> list[tuple[str, Path]]:
    """Caption and PNG file of every curve.

    Arguments:
        folder: where the files go
        results: of the folders, each a line beside that of the real volumes
    """
    written = []
    for name, caption, draw in (
        (
            "spectrum",
            "Power by spatial frequency: mean over the volumes, and the middle 90 % of them. A "
            "line that falls below that of the real volumes to the right is blur.",
            _spectrum,
        ),
        (
            "intensities",
            "Intensities: the share of the voxels below each intensity, mean over the volumes.",
            _intensities,
        ),
    ):
        path = folder / f"{name}.png"
        with atomic(path) as file:
            file.write(_picture(partial(draw, results=results)))
        written.append((caption, path))
    return written


def write_generation_page(
    path: Path,
    results: Sequence[GenerationEvaluation],
    pictures: Sequence[tuple[str, Path]],
    *,
    real: str,
) -> None:
    """Writes one page that opens from disk with no network.

    Arguments:
        path: of the page
        results: of the folders
        pictures: caption and PNG file of each curve
        real: folder of the real volumes
    """
    title = f"Generated volumes: {', '.join(r.method for r in results)}"
    copies = [line for r in results for line in copy_lines(r)]
    lines = generation_table(results)
    counts = ", ".join(f"{r.method} with {r.generated}" for r in results)
    summary = [f"Generated volumes: {counts}.", f"Real volumes: {results[0].real}, from {real}."]
    caption = "p is small where generated volumes differ from real ones by more than chance."
    plots = [figure_of(file.read_bytes(), text, kind="plot") for text, file in pictures]
    chapters = [
        Chapter("summary", "Summary", [bullets(summary)]),
        Chapter(
            "results",
            "Results",
            [
                method_table(generation_columns(results), lines, caption=caption),
                bullets(generation_notes(results)),
            ],
        ),
        Chapter("memorization", "Memorization", [bullets(copies)] if copies else []),
        Chapter("curves", "Curves", ['<div class="plots">', *plots, "</div>"] if plots else []),
        Chapter("metrics", "Metrics explained", legend(metrics_of(lines))),
    ]
    with atomic(path) as file:
        file.write(framed(title, chapters).encode())


def _picture(draw: Callable[["Axes"], None]) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    axes.legend()
    with io.BytesIO() as file:
        figure.savefig(file, format="png", dpi=110)
        return file.getvalue()


def _spectrum(axes: "Axes", results: Sequence[GenerationEvaluation]) -> None:
    lines = [("real", results[0].power["real"], results[0])]
    lines += [(r.method, r.power["generated"], r) for r in results]
    for name, power, result in lines:
        (line,) = axes.plot(result.frequencies, power.mean(0), label=name)
        low, high = np.nanpercentile(power, BAND, axis=0)
        axes.fill_between(result.frequencies, low, high, color=line.get_color(), alpha=0.15, lw=0)
    axes.set(title="Power by spatial frequency", xlabel="cycles per mm", ylabel="log10 power")


def _intensities(axes: "Axes", results: Sequence[GenerationEvaluation]) -> None:
    lines = [("real", results[0].quantiles["real"])]
    lines += [(r.method, r.quantiles["generated"]) for r in results]
    for name, quantiles in lines:
        for channel, values in enumerate(quantiles):
            label = name if len(quantiles) == 1 else f"{name}, channel {channel}"
            axes.plot(values, LEVELS, label=label)
    axes.set(
        title="Distribution of intensities",
        xlabel="intensity",
        ylabel="share of the voxels below",
    )
