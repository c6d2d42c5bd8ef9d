"""What a run that learns labels asks of its data, before anything is prepared.

Refused are cases without label maps, labels that no case has, labels that the spacing of
the run loses, and rules for several readers where one person has labelled. Labels of the data that
the run does not name become background, which is said in a line.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from volumediff.data.cases import Case
from volumediff.data.label_survey import CaseLabels, KeptLabel, kept, labels_of, value_name
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.remarks import Remark
from volumediff.errors import UsageError
from volumediff.recipes._base import Recipe
from volumediff.samples.volumes import TrainingVolume

__all__ = ["LabelFindings", "check_prepared_labels", "survey_labels", "with_ignored"]

MEASURED = 24  # cases at most, evenly spaced, on which it is measured what the spacing leaves
IGNORE = "ignore"
FAINT = 0.5  # a label that keeps less of its volume than this is worth a warning


@dataclass(frozen=True, eq=False)
class LabelFindings:
    """What was found.

    Arguments:
        remarks: in the order in which they are told; the errors refuse the run
    """

    remarks: tuple[Remark, ...]

    def require(self) -> None:
        """Raises UsageError with the first error."""
        for remark in self.remarks:
            if remark.severity == "error":
                raise UsageError(remark.message)


def survey_labels(
    recipe: Recipe, cases: Sequence[Case], preprocessing: Preprocessing
) -> LabelFindings:
    """Looks at the label maps of cases; recipes that model none have no findings.

    Arguments:
        recipe: of the run
        cases: for training and validation
        preprocessing: of the run

    Raises:
        DataError: a label map is refused
    """
    if not recipe.needs_labels:
        return LabelFindings(())
    missing = [c.id for c in cases if not c.labelled and c.boxes is None]
    if missing:
        text = (
            f"recipe: needs a label map for every case; {len(missing)} of {len(cases)} have none: "
            f"{', '.join(missing)}; add them, or choose cases with data.only."
        )
        return LabelFindings((Remark("error", "label_missing", text),))
    ignored = _ignored(cases, recipe)
    if any(remark.severity == "error" for remark in ignored):
        return LabelFindings(tuple(ignored))
    mapped = [case for case in cases if case.labelled]
    every = max(1, -(-len(mapped) // MEASURED))
    found = [
        labels_of(with_ignored(case, recipe), preprocessing, left=i % every == 0)
        for i, case in enumerate(mapped)
    ]
    known = [labels for labels in found if labels is not None]
    if not known:  # boxes, which are filled with 1
        return LabelFindings(())
    remarks = [
        *ignored,
        *_absent(recipe, known, boxes=len(mapped) < len(cases)),
        *_readers(recipe, known),
    ]
    if preprocessing.spacing_mm is not None:
        remarks += _spacing(recipe, known, preprocessing.spacing_mm)
    return LabelFindings(tuple(remarks))


def check_prepared_labels(recipe: Recipe, volumes: Sequence[TrainingVolume]) -> None:
    """Every label is in some prepared volume, as spacing and shape have left them.

    Raises:
        UsageError: one is in none
    """
    if not recipe.needs_labels:
        return
    left = set(recipe.labels)
    for volume in volumes:
        if not left:
            return
        label = volume.array("label")
        left -= set() if label is None else set(label.unique().tolist())
    if left and volumes:
        raise UsageError(
            f"recipe.labels: no prepared volume has label {_joined(sorted(left))} any more, which "
            "the files have; make data.preprocessing.shape larger, so that less is cropped, or "
            "spacing_mm smaller."
        )


def with_ignored(case: Case, recipe: Recipe) -> Case:
    """The case whose label map keeps the values that the recipe ignores, which would else be read
    as background."""
    if not recipe.ignored:
        return case
    left = tuple(value for value in case.ignored if value not in recipe.ignored)
    lesions = None if case.lesions is None else (*case.lesions, *recipe.ignored)
    return replace(case, ignored=left, lesions=lesions)


def _ignored(cases: Sequence[Case], recipe: Recipe) -> list[Remark]:
    """Values that are neither lesion nor healthy, and that the recipe does not ignore: the loss
    would learn them as background. A data set that asks to ignore them is refused."""
    values = {value for case in cases for value in case.ignored} - set(recipe.ignored)
    if not values:
        return []
    names = {value: name for case in cases for value, name in case.names.items()}
    listed = _joined(value_name(value, names) for value in sorted(values))
    remedy = f"recipe.ignored={sorted({*values, *recipe.ignored})}".replace(" ", "")
    if any(names.get(value, "").strip().lower() == IGNORE for value in values):
        text = (
            f"recipe: the data set asks to ignore {listed}, which would be learnt as background; "
            f"set {remedy}, or take 'ignore' out of dataset.json if they are background."
        )
        return [Remark("error", "label_ignored", text)]
    text = (
        f"recipe.labels: {listed}, neither lesion nor healthy, become background; set {remedy} "
        "to learn nothing there."
    )
    return [Remark("warning", "label_ignored", text)]


def _absent(recipe: Recipe, found: Sequence[CaseLabels], *, boxes: bool) -> list[Remark]:
    """Labels that are asked for and not there, and those that are there and not asked for."""
    names = _names(found)
    there = {v: sum(v in c.values for c in found) for c in found for v in c.values}
    if boxes:
        there.setdefault(1, 0)
    wanted, remarks = set(recipe.labels), []
    listed = _joined(value_name(v, names) for v in sorted(there)) or "none"
    nowhere = sorted(wanted - set(there))
    if nowhere:
        text = (
            f"recipe.labels: no case has {_joined(value_name(v, names) for v in nowhere)}"
            f"; the {len(found)} label maps have {listed}: choose among them."
        )
        remarks.append(Remark("error", "label_absent", text))
    unnamed = sorted(set(there) - wanted - set(recipe.ignored))
    if unnamed and wanted:
        shown = _joined(f"{value_name(v, names)} in {there[v]}" for v in unnamed)
        text = (
            f"recipe.labels: of {len(found)} label maps, {shown} become background; name them "
            "in recipe.labels to learn them."
        )
        remarks.append(Remark("warning", "label_unnamed", text))
    return remarks


def _readers(recipe: Recipe, found: Sequence[CaseLabels]) -> list[Remark]:
    if not recipe.needs_readers or any(c.readers > 1 for c in found):
        return []
    text = (
        f"recipe.raters: expected cases that several readers have labelled, and {len(found)} of "
        f"{len(found)} have one label map; use recipe.raters=majority."
    )
    return [Remark("error", "readers_missing", text)]


def _spacing(
    recipe: Recipe, found: Sequence[CaseLabels], spacing_mm: tuple[float, float, float]
) -> list[Remark]:
    """What the spacing leaves of the labels that are learnt."""
    names, remarks = _names(found), []
    measured = [c for c in found if c.left is not None]
    file_mm = tuple(float(s) for s in np.median([c.spacing_mm for c in measured], axis=0))
    results = kept(measured, recipe.labels)
    shown = _joined(_share(each, names) for each in results)
    if results:
        text = f"labels at {_mm(spacing_mm)}, files at {_mm(file_mm)}: {shown}"
        faint = any(each.share < FAINT or each.gone for each in results)
        remarks.append(Remark("warning" if faint else "info", "label_share", text))
    lost = [each for each in results if each.lost]
    if lost:
        text = "; ".join(_loss(each, names) for each in lost)
        remarks.append(
            Remark(
                "error",
                "label_lost",
                f"recipe.labels: at the run's spacing of {_mm(spacing_mm)}, {text}; the files "
                f"have {_mm(file_mm)}: set data.preprocessing.spacing_mm={_word(file_mm)}.",
            )
        )
    return remarks


def _share(each: KeptLabel, names: Mapping[int, str]) -> str:
    gone = f", gone in {each.gone} of {each.cases} cases" if each.gone else ""
    return f"{value_name(each.value, names)} keeps {each.share:.0%} of its volume{gone}"


def _loss(each: KeptLabel, names: Mapping[int, str]) -> str:
    name = f"label {value_name(each.value, names)}"
    if each.gone == each.cases:
        return f"nothing is left of {name} in any of {each.cases} cases"
    before, after = each.voxels
    return f"{after:g} of {before:g} voxels of {name} are left in the middle case"


def _names(found: Sequence[CaseLabels]) -> dict[int, str]:
    return {value: name for c in found for value, name in c.names.items()}


def _joined(parts: Iterable[object]) -> str:
    return ", ".join(map(str, parts))


def _mm(spacing: tuple[float, ...]) -> str:
    same = max(spacing) - min(spacing) < 1e-3 * max(spacing)
    return f"{spacing[0]:.4g} mm" if same else "/".join(f"{s:.4g}" for s in spacing) + " mm"


def _word(spacing: tuple[float, ...]) -> str:
    """The spacing as an override takes it."""
    same = max(spacing) - min(spacing) < 1e-3 * max(spacing)
    return f"{spacing[0]:.4g}" if same else "[" + ",".join(f"{s:.4g}" for s in spacing) + "]"
