"""Evaluation of folders of outputs: of maps, of segmentations or of both, or of translations.

What a folder holds says which metrics it has: `<case>_desc-anomaly_map` those of localization (see
`localization`), `<case>_dseg` those of segmentation (see `segmentation`), and
`<case>_desc-translated_<channel>` those of translation (see `translation`); label maps of other
programs are named after the cases.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from volumediff.data.patients import Patients
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.survey import AUTO, Spec
from volumediff.errors import UsageError
from volumediff.evaluation.localization import MethodResult, evaluate_maps
from volumediff.evaluation.output_folders import known_cases, maps_in, segmentations_in
from volumediff.evaluation.segmentation import SegmentationEvaluation, evaluate_segmentations
from volumediff.evaluation.segmentation_case import SegmentationRules
from volumediff.evaluation.translation import (
    TranslationEvaluation,
    evaluate_translations,
    measured_cases,
)
from volumediff.evaluation.translation_case import Segments
from volumediff.evaluation.truths import Truth, find_truths
from volumediff.outputs.case_files import written
from volumediff.outputs.export import MAP
from volumediff.outputs.segmentation_files import DSEG
from volumediff.outputs.translation_files import translations_in

__all__ = ["EvaluationResult", "evaluate", "localizations", "segmentations", "translations"]

EvaluationResult = MethodResult | SegmentationEvaluation | TranslationEvaluation


def localizations(results: Sequence[EvaluationResult]) -> list[MethodResult]:
    """The results of maps."""
    return [r for r in results if isinstance(r, MethodResult)]


def segmentations(results: Sequence[EvaluationResult]) -> list[SegmentationEvaluation]:
    """The results of segmentations."""
    return [r for r in results if isinstance(r, SegmentationEvaluation)]


def translations(results: Sequence[EvaluationResult]) -> list[TranslationEvaluation]:
    """The results of translations."""
    return [r for r in results if isinstance(r, TranslationEvaluation)]


def evaluate(
    folders: Sequence[Path | str],
    truth: Path | str,
    *,
    by: str | None = None,
    layout: Spec = AUTO,
    policy: ReadPolicy | None = None,
    patients: Patients | None = None,
    seed: int = 0,
    replicates: int = 1000,
    allow_seen: bool = False,
    same_names: bool = False,
    rules: SegmentationRules = SegmentationRules(),  # noqa: B008 - frozen
    segments: Segments | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> list[EvaluationResult]:
    """Compares folders of outputs, each of one method, with the truth, on the cases they share.

    Arguments:
        folders: outputs of `localize`, `segment` or `translate`, or label maps of another program
        truth: folder of cases with labels or boxes, in any layout, or of masks alone; an empty
            mask is a healthy volume, no mask is no truth; for translations, the cases with the
            channels that were translated
        by: attribute of the cases (a column of participants.tsv) that makes subgroups
        layout: of the truth
        policy: decisions on ambiguous files of the truth
        patients: names the patient of every case that is compared; None takes what the truth or
            the results say
        seed: of the bootstrap
        replicates: of the bootstrap
        allow_seen: go on although a model has seen some of the volumes before; results then hold
            the metrics without them, too
        same_names: equal names of patients are those of other people; equal files still count
        rules: how labels are compared
        segments: gives labels of channels, for the Dice of lesions in translations
        report: receives a line for everything that is left out

    Returns:
        results of maps first, then those of segmentations, each in the order of the folders

    Raises:
        UsageError: no outputs in a folder, two folders of one method, or a case without patient
        DataError: no truth for any output, image and mask on different grids, volumes that a model
            has seen, or a volume that is there twice
    """
    places = [Path(folder) for folder in folders]
    if len(set(places)) < len(places):
        raise UsageError("expected folders of different methods, got one of them twice.")
    for folder in places:
        if not folder.is_dir():
            raise UsageError(f"{folder}: expected a folder of results, nothing is there.")
        if not written(folder, "*.nii*"):
            raise _nothing_in(folder)
    drawn = {folder: found for folder in places if (found := translations_in(folder))}
    how = {"seed": seed, "replicates": replicates, "by": by, "report": report}
    how |= {"allow_seen": allow_seen, "same_names": same_names}
    if drawn:
        if others := [folder for folder in places if folder not in drawn]:
            raise UsageError(
                f"{others[0]}: has no translations, and {next(iter(drawn))} has; evaluate them "
                "apart."
            )
        cases = measured_cases(truth, layout)
        if patients is not None:
            shared = [n for n in cases if any(n in found for found in drawn.values())]
            named = patients.of_each(shared, where="patients")
            cases |= {n: replace(cases[n], patient=who) for n, who in named.items()}
        return [*evaluate_translations(drawn, cases, policy=policy, segments=segments, **how)]
    if segments is not None:
        raise UsageError(
            f"{places[0]}: expected translations for a segmentation of their lesions, got none; "
            "leave the segmentation run out."
        )
    maps = {folder: found for folder in places if (found := maps_in(folder))}
    truths = find_truths(truth, layout, policy)
    labels = {folder: found for folder in places if (found := segmentations_in(folder, truths))}
    for folder in places:
        if folder not in maps and folder not in labels:
            raise _nothing_in(folder)
    results: list[EvaluationResult] = []
    if maps:
        known = _named(known_cases(maps, truths, truth, by=by, report=report), patients)
        results += evaluate_maps(maps, known, **how)
    if labels:
        known = _named(known_cases(labels, truths, truth, by=by, report=report), patients)
        results += evaluate_segmentations(labels, known, rules=rules, **how)
    return results


def _named(known: Mapping[str, Truth], patients: Patients | None) -> dict[str, Truth]:
    """The truth with the patients that the rule names."""
    if patients is None:
        return dict(known)
    named = patients.of_each([*known], where="patients")
    return {case: replace(t, patient=named[case], told=True) for case, t in known.items()}


def _nothing_in(folder: Path) -> UsageError:
    return UsageError(
        f"{folder}: has no *_{MAP}.nii.gz and no *_{DSEG}.nii.gz; localize into this folder "
        "first, or segment or translate."
    )
