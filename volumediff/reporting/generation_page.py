"""Curves and report of generated volumes: power by frequency, intensities, the table."""

import io
import time
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from importlib.resources import files
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
from volumediff.evaluation.table_line import Line
from volumediff.reporting.document import NOTICE
from volumediff.reporting.panel import figure_of
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
    style = files("volumediff.reporting").joinpath("report.css").read_text(encoding="utf-8")
    title = f"Generated volumes: {', '.join(r.method for r in results)}"
    copies = [line for r in results for line in copy_lines(r)]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(time.strftime("%Y-%m-%d %H:%M"))}</p>',
        f'<p class="notice"><strong>{escape(NOTICE)}</strong></p>',
        f"<p>Real volumes: {escape(real)}</p>",
        "<h2>Results</h2>",
        _table(generation_columns(results), generation_table(results)),
        _list(generation_notes(results)),
    ]
    if copies:
        parts += ["<h2>Memorization</h2>", _list(copies)]
    parts += [figure_of(file.read_bytes(), caption) for caption, file in pictures]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'"
    page = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{style}</style></head><body>",
        *parts,
        "</body></html>\n",
    ]
    with atomic(path) as file:
        file.write("\n".join(page).encode())


def _table(columns: Sequence[str], lines: Sequence[Line]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    body = []
    for line in lines:
        cells = []
        for cell in line.cells:
            text = line.text(cell.value) or "–"
            if np.isfinite(cell.low):
                text += f"<small>{line.text(cell.low)} to {line.text(cell.high)}</small>"
            cells.append(f"<td>{text}</td>")
        body.append(f"<tr><td>{escape(line.heading)}</td>{''.join(cells)}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th scope="col"></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _list(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


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
    axes.set(xlabel="cycles per mm", ylabel="log10 power")


def _intensities(axes: "Axes", results: Sequence[GenerationEvaluation]) -> None:
    lines = [("real", results[0].quantiles["real"])]
    lines += [(r.method, r.quantiles["generated"]) for r in results]
    for name, quantiles in lines:
        for channel, values in enumerate(quantiles):
            label = name if len(quantiles) == 1 else f"{name}, channel {channel}"
            axes.plot(values, LEVELS, label=label)
    axes.set(xlabel="intensity", ylabel="share of the voxels below")
