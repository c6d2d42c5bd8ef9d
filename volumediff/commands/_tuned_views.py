"""The result of a search, as a table on the terminal and as a picture."""

import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from volumediff.commands._console import show_table, terminal
from volumediff.commands._tables import WIDE
from volumediff.tunable import Tunable
from volumediff.tuning.trials import Trial
from volumediff.tuning.tuned import AxisSearch, Setting, Tuned, name_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["picture", "tabulated"]

FIGURES = (
    ("healthy error", "healthy_error"),
    ("lesion map", "lesion_map"),
    ("healthy change", "healthy_change"),
    ("lesion left", "lesion_left"),
)


def tabulated(found: Tuned) -> None:
    """One row per setting, in the order of the search; then what the columns are."""
    shown = [n for n, _ in found.own if len({dict(s)[n] for s in found.trials}) > 1]
    shown = shown or [n for n, _ in found.own]
    figures = [
        (heading, name)
        for heading, name in FIGURES
        if any(not math.isnan(trial.mean(name)) for trial in found.trials.values())
    ]
    table = Table(box=None, pad_edge=False)
    headings = [heading for heading, _ in figures]
    for name in (*shown, "voxel AP", "Dice*", "threshold", *headings, "calls", "s", ""):
        table.add_column(name, justify="right" if name else "left")
    for setting, trial in found.trials.items():
        note = ["chosen"] * (setting == found.chosen) + ["the method's own"] * (
            setting == found.own
        )
        table.add_row(
            *(f"{dict(setting)[name]:g}" for name in shown),
            _with_error(trial, "ap"),
            _number(trial.dice),
            f"{trial.threshold:.4g}",
            *(_number(trial.mean(name)) for _, name in figures),
            f"{trial.network_calls:g}",
            f"{trial.seconds:.2f}",
            ", ".join(note),
            style="bold" if setting == found.chosen else None,
        )
    console = terminal(WIDE)
    show_table(console, table)
    for line in _sentences(found, headings):
        console.print(line, soft_wrap=True)


def _sentences(found: Tuned, headings: list[str]) -> list[str]:
    put = next(iter(found.trials.values())).mean("lesion_put")
    lines = [
        f"means over {len(found.facts['volumes'])} validation volumes, {found.facts['truth']} "
        "lesions; ± standard error; *at the best threshold of these volumes, an upper bound"
    ]
    if "lesion left" in headings:
        lines.append(
            f"lesion left: of {put:.3f} that the lesions changed; healthy change: the same of "
            "healthy tissue"
        )
    lines += [f"left out: {name_of(s)}: {reason}" for s, reason in found.refused.items()]
    for stage in found.stages:
        name = stage.axis.name
        values = [dict(s)[name] for s in stage.settings]
        best = dict(found.chosen)[name]
        if len(set(values)) > 1 and best in (values[0], values[-1]) and best != 0:
            lines.append(f"{name}={best:g} is the last of the grid: beyond it nothing was tried")
    if found.stopped is not None:
        lines.append(f"not complete: {found.stopped}; the same command goes on")
    return lines


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _with_error(trial: Trial, name: str) -> str:
    error = trial.error(name)
    return _number(trial.mean(name)) + ("" if math.isnan(error) else f" ± {error:.4f}")


def picture(found: Tuned) -> bytes:
    """PNG: what settings do to lesions and to healthy tissue, and AP along each axis."""
    from matplotlib.figure import Figure  # heavy import

    figure = Figure(figsize=(4.6 * (1 + len(found.stages)), 4.2), layout="constrained")
    panels = np.atleast_1d(figure.subplots(1, 1 + len(found.stages)))
    for stage in found.stages:
        if stage.axis.what is not Tunable.WIDTH:  # raw maps know nothing of widths
            _tradeoff(panels[0], found, stage)
    _mark(panels[0], {s: _tradeoff_of(found, s) for s in found.trials}, found)
    panels[0].legend(fontsize=8)
    for axes, stage in zip(panels[1:], found.stages, strict=True):
        _along(axes, found, stage)
    for axes in panels:
        axes.grid(alpha=0.3)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _restored(found: Tuned) -> bool:
    """Whether there is a pseudo-healthy volume, and the volume without its lesion beside it."""
    return not math.isnan(found.trials[found.chosen].mean("lesion_left"))


def _tradeoff_of(found: Tuned, setting: Setting) -> tuple[float, float]:
    names = ("healthy_error", "lesion_map")
    if _restored(found):
        names = ("healthy_change", "lesion_left")
    healthy, lesion = (found.trials[setting].mean(name) for name in names)
    return healthy, lesion


def _tradeoff(axes: "Axes", found: Tuned, stage: AxisSearch) -> None:
    """Lesion against healthy tissue, in the pseudo-healthy volume where there is one."""
    places = [_tradeoff_of(found, setting) for setting in stage.settings]
    axes.plot(*zip(*places, strict=True), "o-", markersize=4, label=stage.axis.name)
    for setting, place in zip(stage.settings, places, strict=True):
        value = dict(setting)[stage.axis.name]
        axes.annotate(f"{value:g}", place, (5, -9), textcoords="offset points", fontsize=7)
    if _restored(found):
        axes.set(
            xlabel="healthy error: mean |x̂ − x| of healthy tissue",
            ylabel="lesion left: mean |x̂ − x| in the lesion",
        )
    else:
        axes.set(
            xlabel="healthy error: mean map of healthy tissue", ylabel="mean map in the lesion"
        )


def _along(axes: "Axes", found: Tuned, stage: AxisSearch) -> None:
    """Voxel AP along an axis, with standard errors."""
    trials = [found.trials[s] for s in stage.settings]
    xs = [dict(s)[stage.axis.name] for s in stage.settings]
    ys = [trial.mean("ap") for trial in trials]
    errors = [np.nan_to_num(trial.error("ap")) for trial in trials]
    axes.errorbar(xs, ys, yerr=errors, fmt="o-", markersize=4, capsize=2)
    _mark(axes, dict(zip(stage.settings, zip(xs, ys, strict=True), strict=True)), found)
    axes.set(xlabel=stage.axis.name, ylabel="voxel AP, validation volumes")


def _mark(axes: "Axes", places: Mapping[Setting, tuple[float, float]], found: Tuned) -> None:
    """A star for the chosen setting, a square for the method's own."""
    if found.chosen in places:
        star = {"marker": "*", "color": "tab:red"}
        axes.scatter(*places[found.chosen], 140, zorder=3, label="chosen", **star)
    if found.own in places:
        square = {"marker": "s", "facecolors": "none", "edgecolors": "k"}
        axes.scatter(*places[found.own], 60, zorder=3, label="the method's own", **square)
