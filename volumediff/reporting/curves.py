"""Curves of an evaluation as PNG files: FROC, reliability, risk-coverage."""

import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volumediff.evaluation.leakage import said
from volumediff.evaluation.localization import MethodResult
from volumediff.metrics.lesions import FROC_RATES
from volumediff.storage.atomic import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["curve_picture", "write_curves"]

# False positives per volume that are shown: those that are summarized, and where curves begin.
SHOWN = (FROC_RATES[0] / 2, FROC_RATES[-1])


def write_curves(folder: Path, results: Sequence[MethodResult]) -> list[tuple[str, Path]]:
    """Caption and file of every curve that some method has.

    Arguments:
        folder: where the files go
        results: of the methods; each is a line
    """
    written = []
    warning = "".join(f" {line}" for line in said([r.leakage for r in results]))
    for name, caption, draw in (
        (
            "froc",
            "FROC: lesions found against false positives per volume, for candidates of each "
            "method's own mask. Lines end where the mask ends.",
            _froc,
        ),
        (
            "reliability",
            "Reliability: share of lesion voxels by probability, which was fitted on validation "
            "volumes. On the diagonal a probability means what it says.",
            _reliability,
        ),
        (
            "risk_coverage",
            "Risk-coverage: share of wrong voxels among the most certain ones. It falls to the "
            "left where the uncertainty knows the errors.",
            _risk_coverage,
        ),
    ):
        shown = [r for r in results if getattr(r.curves, name) is not None]
        if shown:
            path = folder / f"{name}.png"
            with atomic(path) as file:
                file.write(curve_picture([partial(draw, result=r) for r in shown]))
            written.append((caption + warning, path))
    return written


def curve_picture(lines: Sequence[Callable[["Axes"], None]]) -> bytes:
    """PNG of lines in one frame with a legend.

    Arguments:
        lines: each draws itself, with its label
    """
    from matplotlib.figure import Figure  # heavy import

    figure = Figure(figsize=(5.2, 3.9), layout="constrained")
    axes = figure.subplots()
    for draw in lines:
        draw(axes)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
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


def _reliability(axes: "Axes", result: MethodResult) -> None:
    table = result.curves.reliability
    assert table is not None, "it was asked for"
    known = table.voxels > 0
    n = table.voxels[known]
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.plot(table.predicted[known] / n, table.lesions[known] / n, "o-", label=result.method)
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="probability of a lesion", ylabel="share of lesion voxels"
    )


def _risk_coverage(axes: "Axes", result: MethodResult) -> None:
    curve = result.curves.risk_coverage
    assert curve is not None, "it was asked for"
    axes.plot(curve.coverage, curve.risk, label=result.method)
    axes.set(xlim=(0, 1), xlabel="share of voxels kept", ylabel="wrong voxels among them")
    axes.set_ylim(bottom=0)
