"""Curves of an evaluation as PNG files: FROC, reliability, risk-coverage."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volumediff.evaluation.localization import MethodResult
from volumediff.metrics import calibration_error
from volumediff.metrics.lesions import FROC_RATES
from volumediff.storage.atomic import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["FEW_VOXELS", "curve_picture", "reliability_picture", "write_curves"]

SIZE = (5.6, 4.2)  # inches
# A share of fewer voxels is mostly chance: its point is hollow, and no line goes to it.
LEAST_VOXELS = 100
FEW_VOXELS = (
    f"The lower frame shows how many voxels each point stands on; points of fewer than "
    f"{LEAST_VOXELS} voxels are hollow."
)

# False positives per volume that are shown: those that are summarized, and where curves begin.
SHOWN = (FROC_RATES[0] / 2, FROC_RATES[-1])


def write_curves(folder: Path, results: Sequence[MethodResult]) -> list[tuple[str, Path]]:
    """Caption and file of every curve that some method has.

    Arguments:
        folder: where the files go
        results: of the methods; each is a line
    """
    froc = [partial(_froc, result=r) for r in results if r.curves.froc is not None]
    tables = [(r.method, t) for r in results if (t := r.curves.reliability) is not None]
    risks = [partial(_risk_coverage, result=r) for r in results if r.curves.risk_coverage]
    written = []
    for name, caption, picture in (
        (
            "froc",
            "FROC: share of the lesions found against false positives per volume, for candidates "
            "of each method's own mask. Lines end where the mask ends.",
            curve_picture(froc, title="Lesions found by false positives") if froc else None,
        ),
        (
            "reliability",
            "Reliability: share of lesion voxels by probability, which was fitted on validation "
            f"volumes. On the diagonal a probability means what it says. {FEW_VOXELS}",
            reliability_picture(
                tables,
                title="Reliability of probabilities",
                x="probability of a lesion",
                y="share of lesion voxels",
            )
            if tables
            else None,
        ),
        (
            "risk_coverage",
            "Risk-coverage: share of wrong voxels among the most certain ones. It falls to the "
            "left where the uncertainty knows the errors.",
            curve_picture(risks, title="Errors that remain by share kept") if risks else None,
        ),
    ):
        if picture is not None:
            path = folder / f"{name}.png"
            with atomic(path) as file:
                file.write(picture)
            written.append((caption, path))
    return written


def curve_picture(lines: Sequence[Callable[["Axes"], None]], *, title: str) -> bytes:
    """PNG of lines in one frame with a legend.

    Arguments:
        lines: each draws itself, with its label
        title: above the frame
    """
    from matplotlib.figure import Figure  # heavy import

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for draw in lines:
        draw(axes)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return _png(figure)


def reliability_picture(
    tables: Sequence[tuple[str, calibration_error.Reliability]], *, title: str, x: str, y: str
) -> bytes:
    """PNG of the share of hits by probability, and below it how many voxels each point stands on.

    Arguments:
        tables: name and sums per bin; each is a line
        title: above the frame
        x, y: of the axes
    """
    from matplotlib.figure import Figure  # heavy import

    figure = Figure(figsize=(SIZE[0], SIZE[1] + 1.1), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    for name, table in tables:
        n = table.voxels
        known, many = n > 0, n >= LEAST_VOXELS
        at = np.divide(table.predicted, n, out=np.full(len(n), np.nan), where=known)
        share = np.divide(table.lesions, n, out=np.full(len(n), np.nan), where=known)
        (line,) = above.plot(at[many], share[many], "o-", label=name)
        colour = line.get_color()
        few = known & ~many
        above.plot(at[few], share[few], "o", color=colour, fillstyle="none")
        below.plot(at[known], n[known], "o-", color=colour, markersize=3, linewidth=0.8)
    above.set(xlim=(0, 1), ylim=(0, 1.02), ylabel=y, title=title)
    above.legend(fontsize=8)
    below.set(yscale="log", xlabel=x, ylabel="voxels")
    for axes in (above, below):
        axes.grid(alpha=0.3)
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _froc(axes: "Axes", result: MethodResult) -> None:
    curve = result.curves.froc
    assert curve is not None, "it was asked for"
    (line,) = axes.plot(
        np.maximum(curve.false_positives, SHOWN[0]), curve.sensitivity, label=result.method
    )
    axes.plot(
        max(curve.false_positives[-1], SHOWN[0]),
        curve.sensitivity[-1],
        marker="o",
        color=line.get_color(),
    )
    axes.set(
        xscale="log",
        xlim=SHOWN,
        ylim=(0, 1.02),
        xticks=FROC_RATES,
        xticklabels=[f"{rate:g}" for rate in FROC_RATES],
        xlabel="false positives per volume",
        ylabel="lesions found",
    )


def _risk_coverage(axes: "Axes", result: MethodResult) -> None:
    curve = result.curves.risk_coverage
    assert curve is not None, "it was asked for"
    axes.plot(curve.coverage, curve.risk, label=result.method)
    axes.set(xlim=(0, 1), xlabel="share of voxels kept", ylabel="wrong voxels among them")
    axes.set_ylim(bottom=0)
