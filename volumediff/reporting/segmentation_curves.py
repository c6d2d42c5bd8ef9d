"""Curves of evaluated segmentations as PNG files: reliability of the labels, risk-coverage."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from volumediff.data.label_names import label_name
from volumediff.evaluation.segmentation import SegmentationEvaluation
from volumediff.metrics import calibration_error, detection
from volumediff.reporting.curves import FEW_VOXELS, curve_picture, reliability_picture
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
    risks = [partial(_draw_risk, r.method, c) for r in results if (c := _risk(r)) is not None]
    for name, caption, picture in (
        (
            "label_reliability",
            "Reliability of the labels: share of their voxels by probability. On the diagonal a "
            f"probability means what it says; below it the model is too sure. {FEW_VOXELS}",
            reliability_picture(
                tables,
                title="Reliability of the labels",
                x="probability",
                y="share of the label's voxels",
            )
            if tables
            else None,
        ),
        (
            "label_risk_coverage",
            "Risk-coverage by entropy: share of wrong voxels among the most certain ones. It "
            "falls to the left where the entropy knows the errors.",
            curve_picture(risks, title="Errors that remain by share kept") if risks else None,
        ),
    ):
        if picture is not None:
            path = folder / f"{name}.png"
            with atomic(path) as file:
                file.write(picture)
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
            name = label_name(group[0], r.names) if len(results) == 1 else r.method
            if whole is not None:
                found.append((name, whole))
    return found


def _risk(result: SegmentationEvaluation) -> calibration_error.RiskCoverage | None:
    errors = [c.errors for c in result.cases if c.errors is not None]
    return calibration_error.risk_coverage(detection.total(detection.coarse(errors)))


def _draw_risk(name: str, curve: calibration_error.RiskCoverage, axes: "Axes") -> None:
    axes.plot(curve.coverage, curve.risk, label=name)
    axes.set(xlabel="share of voxels kept", ylabel="wrong voxels among them")
    # most of a volume is certain background: the frame begins where the entropy does
    axes.set_xlim(right=1)
    axes.set_ylim(bottom=0)
