"""Curves of evaluated segmentations as PNG files: reliability of the labels, risk-coverage."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from volumediff.evaluation.segmentation import SegmentationEvaluation
from volumediff.metrics import calibration_error, detection
from volumediff.reporting.curves import curve_picture
from volumediff.storage.atomic import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["write_label_curves"]

Named = tuple[str, calibration_error.Reliability]


def write_label_curves(
    folder: Path, results: Sequence[SegmentationEvaluation]
) -> list[tuple[str, Path]]:
    """Caption and file of every curve that some method has.

    Arguments:
        folder: where the files go
        results: of the methods; each is a line, of one method each label
    """
    written = []
    tables = _tables(results)
    risks = [(r.method, curve) for r in results if (curve := _risk(r)) is not None]
    for name, caption, lines, draw in (
        (
            "label_reliability",
            "Reliability of the labels: share of their voxels by probability. On the diagonal a "
            "probability means what it says; below it the model is too sure.",
            tables,
            _draw_reliability,
        ),
        (
            "label_risk_coverage",
            "Risk-coverage by entropy: share of wrong voxels among the most certain ones. It "
            "falls to the left where the entropy knows the errors.",
            risks,
            _draw_risk,
        ),
    ):
        if lines:
            path = folder / f"{name}.png"
            with atomic(path) as file:
                file.write(curve_picture([partial(draw, *line) for line in lines]))
            written.append((caption, path))
    return written


def _tables(results: Sequence[SegmentationEvaluation]) -> list[Named]:
    """Of one method its labels, of several their sum over labels, without the background."""
    found: list[Named] = []
    for r in results:
        for group in [[v] for v in r.values] if len(results) == 1 else [[*r.values]]:
            whole = calibration_error.total(
                c.reliability[v] for c in r.cases for v in group if v in c.reliability
            )
            name = r.names.get(group[0], f"label {group[0]}") if len(results) == 1 else r.method
            if whole is not None:
                found.append((name, whole))
    return found


def _risk(result: SegmentationEvaluation) -> calibration_error.RiskCoverage | None:
    errors = [c.errors for c in result.cases if c.errors is not None]
    return calibration_error.risk_coverage(detection.total(detection.coarse(errors)))


def _draw_reliability(name: str, table: calibration_error.Reliability, axes: "Axes") -> None:
    known = table.voxels > 0
    n = table.voxels[known]
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
    axes.plot(table.predicted[known] / n, table.lesions[known] / n, "o-", label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="probability", ylabel="share of the label's voxels")


def _draw_risk(name: str, curve: calibration_error.RiskCoverage, axes: "Axes") -> None:
    axes.plot(curve.coverage, curve.risk, label=name)
    axes.set(xlabel="share of voxels kept", ylabel="wrong voxels among them")
    # most of a volume is certain background: the frame begins where the entropy does
    axes.set_xlim(right=1)
    axes.set_ylim(bottom=0)
