"""What follows from the data alone: cases, channels, intensities, split, and what they lack."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from volumediff.data.cases import Case
from volumediff.data.splits import MOST_RAISED, PARTS, SYNONYMS, Split
from volumediff.errors import DataError
from volumediff.proposals.geometry import THICK, TargetGrid
from volumediff.proposals.measured import MeasuredSet

__all__ = [
    "Goal",
    "data_comments",
    "data_remarks",
    "grid_comments",
    "independent_of_size",
    "labels_of",
]

Goal = Literal["localization", "segmentation"]
FEW = 20  # patients, of which a quarter are the five that thresholds are calibrated on
HEALTHY = {"healthy", "control", "controls", "hc", "normal", "cn", "nc"}
GROUPS = ("group", "diagnosis", "dx")
OTHER_SPACING = 1.5  # times the median: resampling changes what such volumes look like
SHOWN = 6  # values of an attribute in a comment


def independent_of_size(found: MeasuredSet, *, goal: Goal, output: Path | str) -> dict[str, Any]:
    """The part of a configuration that does not depend on the size of the network."""
    data: dict[str, Any] = {
        "root": str(found.root.absolute()),
        "layout": found.layout,
        "channels": list(found.channels) if len(found.channels) > 1 else None,
        "only": _healthy(found) if goal == "localization" else {},
        "split": {"by_attribute": _names_parts(found)},
    }
    if found.ct:
        intensity = {"name": "window", "center": 40.0, "width": 400.0}
        data["preprocessing"] = {"intensity": intensity}
    return {"data": data, "output": str(output)}


def labels_of(found: MeasuredSet) -> tuple[int, ...]:
    """Values of the label maps, without the background.

    Raises:
        DataError: cases without a label map, or nothing is labelled
    """
    missing = [c.case.id for c in found.cases if not c.case.labelled and c.case.boxes is None]
    if missing:
        raise DataError(
            f"{found.root}: segmentation needs a label map for every case; {len(missing)} of "
            f"{len(found.cases)} have none, such as {missing[0]}. Add them beside the images, "
            "move these cases away, or propose a run for localization."
        )
    values = sorted({value for c in found.cases for value in c.label_ml})
    if not values:
        raise DataError(f"{found.root}: every label map is empty; there is nothing to segment.")
    return tuple(values)


def data_comments(
    found: MeasuredSet,
    *,
    goal: Goal,
    cases: Sequence[Case],
    split: Split,
    least_calibration: int,
) -> dict[str, str]:
    """Reasons of what is said about the data; `cases` are those that are used, split as given."""
    note = split.note(least_calibration)
    comments = {
        "data.root": f"{len(found.cases)} cases of {found.patients} patients",
        "data.layout": f"found as {found.layout_name}",
        "data.channels": f"every case has {_and(found.channels)}",
        "data.only": _attributes(found) + _chosen(found, goal, cases),
        "data.preprocessing.intensity": _intensities(found),
        "data.split": note if goal == "localization" else note.partition(";")[0],
    }
    patients = len({case.patient for case in cases})
    if goal == "localization" and len(split.calibration) < least_calibration and patients < FEW:
        comments["data.split"] += (
            f". Five for calibration are more than {MOST_RAISED:.0%} of {patients} patients"
        )
    if goal == "segmentation":
        ml = {v: [c.label_ml[v] for c in found.cases if v in c.label_ml] for v in labels_of(found)}
        names = {v: name for c in found.cases for v, name in c.case.names.items()}
        comments["recipe"] = "; ".join(
            f"label {v}{f' ({names[v]})' if v in names else ''} in {len(each)} of "
            f"{len(found.cases)} cases, {np.median(each):.3g} ml in the middle"
            for v, each in ml.items()
        )
    return comments


def grid_comments(found: MeasuredSet, grid: TargetGrid, thick: int | None) -> dict[str, str]:
    """Reasons of spacing, shape and centre."""
    files = " × ".join(f"{s:.3g}" for s in found.spacing_mm)
    extent = " × ".join(f"{e:.0f}" if e >= 10 else f"{e:.3g}" for e in grid.extent_mm)
    held = " × ".join(f"{s * n:.4g}" for s, n in zip(grid.spacing_mm, grid.shape, strict=True))
    why = f"files have {files} mm (median along R, A, S)"
    if thick is not None:
        why += f", slices at least {THICK:g} times as thick as their pixels"
    point = "a point in RAS mm, since all volumes are aligned, so that they keep their places"
    return {
        "data.preprocessing.spacing_mm": why,
        "data.preprocessing.shape": (
            f"{held} mm; the largest foreground needs {extent} mm, so that nothing is cropped. "
            "Multiples of the network's stride"
        ),
        "data.preprocessing.centre": (
            "the box around the foreground: volumes lie in different places"
            if isinstance(grid.centre, str)
            else point
        ),
    }


def data_remarks(
    found: MeasuredSet, *, goal: Goal, cases: Sequence[Case], calibrated: bool
) -> tuple[str, ...]:
    """What the data lack, and what to do.

    Arguments:
        cases: those that are used
        calibrated: whether they include enough to calibrate the thresholds
    """
    lines = []
    if len(cases) < len(found.cases):
        only = ", ".join(f"{name}: {_text(value)}" for name, value in _healthy(found).items())
        lines.append(
            f"{len(cases)} of {len(found.cases)} cases are used, those with {{{only}}} in the "
            "table of the cases, because a model of healthy volumes should see healthy volumes "
            "alone. If the others are healthy as well, set data.only={}."
        )
    patients = len({case.patient for case in cases})
    if patients < FEW:
        text = f"{patients} {'patient is' if patients == 1 else 'patients are'} few"
        lines.append(
            f"{text}: the model will know little beside them. Add volumes, or adapt a trained run "
            "with start_from=RUN"
            + (
                "; thresholds take five more healthy volumes, which volumediff calibrate "
                "adds later."
                if goal == "localization" and not calibrated
                else "."
            )
        )
    others = _other_spacings(found)
    if others:
        lines.append(
            f"{len(others)} of {len(found.cases)} cases have another spacing than the median, "
            f"such as {others[0]}; resampled, they look smoother or coarser than the others."
        )
    if len(found.cases) > 1 and not found.aligned and not found.ct:
        lines.append(
            "The volumes do not lie on one grid. Brains are learnt better when they are aligned: "
            "give them to volumediff prepare, and its output to volumediff init."
        )
    used = {case.id for case in cases}
    sick = [c for c in found.cases if c.case.id in used and c.label_ml]
    if goal == "localization" and sick:
        lines.append(
            f"{len(sick)} of {len(cases)} cases have labels that are not empty. A model of "
            "healthy volumes should not learn lesions: name healthy cases in a column of "
            "participants.tsv and choose them with data.only={group: healthy}, or train for "
            "segmentation."
        )
    return tuple(lines)


def _healthy(found: MeasuredSet) -> dict[str, Any]:
    """An attribute that tells healthy cases from others, and its value for them."""
    for name in GROUPS:
        values = found.values_of(name)
        healthy = [value for value in values if value.lower() in HEALTHY]
        if healthy and len(healthy) < len(values):
            return {name: healthy[0] if len(healthy) == 1 else healthy}
    return {}


def _chosen(found: MeasuredSet, goal: Goal, cases: Sequence[Case]) -> str:
    """What a choice of healthy cases comes to, for a comment."""
    if goal != "localization" or not _healthy(found):
        return ""
    return f". {len(cases)} of {len(found.cases)} cases are chosen as healthy; {{}} takes all"


def _text(value: object) -> str:
    return f"[{', '.join(value)}]" if isinstance(value, list) else str(value)


def _names_parts(found: MeasuredSet) -> bool:
    """Whether the attribute `split` names a part for every case, training among them."""
    values = found.values_of("split")
    parts = {SYNONYMS.get(value.lower(), value.lower()) for value in values}
    return parts <= set(PARTS) and "train" in parts and values.total() == len(found.cases)


def _other_spacings(found: MeasuredSet) -> list[str]:
    usual = np.array(found.spacing_mm)
    return [
        c.case.id
        for c in found.cases
        if np.exp(np.abs(np.log(np.array(c.grid.spacing_mm) / usual)).max()) > OTHER_SPACING
    ]


def _attributes(found: MeasuredSet) -> str:
    parts = []
    for name in found.attributes:
        values = found.values_of(name)
        try:
            numbers = [float(value) for value in values.elements()]
        except ValueError:
            parts.append(f"{name} ({_counts(values)})")
        else:
            parts.append(f"{name} ({min(numbers):g} to {max(numbers):g})")
    return f"attributes of the cases: {', '.join(parts) or 'none'}"


def _counts(values: Counter[str]) -> str:
    shown = ", ".join(f"{value} {count}" for value, count in values.most_common(SHOWN))
    return f"{shown}, ..." if len(values) > SHOWN else shown


def _intensities(found: MeasuredSet) -> str:
    kind = "CT in Hounsfield units" if found.ct else "no Hounsfield units"
    parts = []
    for i, name in enumerate(found.channels):
        own = np.array([c.ranges[i] for c in found.cases if len(c.ranges) > i])
        if own.size:
            low, middle, high = own[:, 0].min(), np.median(own[:, 1]), own[:, 2].max()
            parts.append(f"{name} {low:.4g} to {high:.4g}, median {middle:.4g}")
    text = f"{kind}; in the foreground {'; '.join(parts)}"
    if found.ct:
        text += ". Soft tissue; for brains {name: window, center: 35, width: 100}"
    return text


def _and(names: Sequence[str]) -> str:
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last
