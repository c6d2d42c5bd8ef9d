"""Tables and sentences about evaluated segmentations, for reports and the terminal."""

from collections.abc import Sequence

import numpy as np

from volumediff.data.label_names import label_name
from volumediff.evaluation.leakage import said
from volumediff.evaluation.segmentation import MEAN, SegmentationEvaluation
from volumediff.evaluation.segmentation_metrics import SEGMENTATION_METRICS
from volumediff.evaluation.table_line import Line, paired, plain
from volumediff.metrics.bootstrap import MIN_PATIENTS

__all__ = [
    "segmentation_notes",
    "segmentation_tables",
]

BY_LABEL = ("dice", "nsd", "hd95_mm", "ece")
NAN = float("nan")


def _line(
    results: Sequence[SegmentationEvaluation], heading: str, label: str, name: str
) -> Line | None:
    """A metric of every method, with the differences to the first; None where none has it."""
    cells = [r.labels[label].get(name, plain(NAN)) for r in results]
    if not any(np.isfinite(c.value) for c in cells):
        return None
    first = results[0].method
    to_others = [
        {other: found.get(label, {}).get(name) for other, found in r.differences.items()}
        for r in results
    ]
    to_first = [found.get(first) for found in to_others]
    return Line(
        heading,
        SEGMENTATION_METRICS[name],
        cells,
        {first: to_first} if any(to_first) else {},
        paired([r.method for r in results], to_others),
    )


def segmentation_tables(
    results: Sequence[SegmentationEvaluation],
) -> list[tuple[str, list[Line]]]:
    """Title and rows: all metrics of the mean over labels, then the main ones label by label."""
    if not results:
        return []
    labels = [str(v) for v in results[0].values]
    mean = [_line(results, m.title, MEAN, name) for name, m in SEGMENTATION_METRICS.items()]
    noun = "label" if len(labels) == 1 else "labels"
    tables = [(f"Segmentation, mean over {len(labels)} {noun}", mean)]
    for name in BY_LABEL if len(labels) > 1 else ():
        rows = [_line(results, _named(results[0], v), v, name) for v in labels]
        tables.append((f"{SEGMENTATION_METRICS[name].title}, label by label", rows))
    tables.append(("Panoptic quality by size of the lesion", _sizes(results)))
    if groups := list(results[0].groups):
        dice = SEGMENTATION_METRICS["dice"]
        rows = [Line(g, dice, [r.groups.get(g, plain(NAN)) for r in results]) for g in groups]
        tables.append(("Dice by group", rows))
    found = [(title, [row for row in rows if row is not None]) for title, rows in tables]
    return [(title, rows) for title, rows in found if rows]


def _sizes(results: Sequence[SegmentationEvaluation]) -> list[Line | None]:
    lines: list[Line | None] = []
    labels = [str(v) for v in results[0].values]
    for label in labels:
        ranges = sorted({r for result in results for r in result.sizes[label]})
        for low, high in ranges if len(ranges) > 1 else ():
            counts = [r.sizes[label].get((low, high)) for r in results]
            lesions = max(c.tp + c.fn for c in counts if c is not None)
            if lesions:
                where = f"{_named(results[0], label)}, " if len(labels) > 1 else ""
                cells = [plain(NAN if c is None else c.pq) for c in counts]
                heading = f"{where}{_range(low, high)} ({lesions})"
                lines.append(Line(heading, SEGMENTATION_METRICS["pq"], cells))
    return lines


def _named(result: SegmentationEvaluation, label: str) -> str:
    return label_name(int(label), result.names)


def _range(low: float, high: float) -> str:
    if low == 0:
        return f"below {high:g} ml"
    return f"{low:g} to {high:g} ml" if np.isfinite(high) else f"from {low:g} ml"


def segmentation_notes(results: Sequence[SegmentationEvaluation]) -> list[str]:
    """What the metrics stand on, one sentence each."""
    if not results:
        return []
    first = results[0]
    cases, rules = first.cases, first.rules
    patients = len({c.patient for c in cases})
    lines = [
        f"{len(cases)} {'volume' if len(cases) == 1 else 'volumes'} of {patients} "
        f"{'patient' if patients == 1 else 'patients'}; "
        + (
            "intervals are 95 % over patients (bootstrap), differences are paired."
            if patients >= MIN_PATIENTS
            else f"fewer than {MIN_PATIENTS}: no interval is given."
        )
    ]
    tolerances = sorted({c.tolerance_mm for c in cases})
    told = " to ".join(f"{t:.3g}" for t in dict.fromkeys((tolerances[0], tolerances[-1])))
    how = "" if rules.tolerance_mm is not None else ", the longest side of a voxel"
    lines.append(f"NSD is at a tolerance of {told} mm{how}.")
    both = {"skip": "is left out", "one": "counts as perfect"}[rules.absent.absent]
    one = {"worst": "has the volume's diagonal as its distance", "skip": "has no distance"}
    lines.append(
        f"A label that neither truth nor segmentation of a volume has {both}; one that only one "
        f"of them has counts as Dice, IoU and NSD 0 and {one[rules.absent.missed]}."
    )
    if any(c.readers for c in cases):
        lines.append(
            "Truths have several readers: overlap and surfaces are against what most of them say, "
            "probabilities against every reader. GED alone says little: samples of independent "
            "voxels win it; read it with HM-IoU, components and surface."
        )
    return lines + said([r.leakage for r in results])
