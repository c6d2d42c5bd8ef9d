"""Results against the truth, generated volumes against real ones: `evaluate` in Python."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from volumediff.api.arguments import Place, Report, silent, sources_of
from volumediff.api.layouts import known_layout
from volumediff.distributed.launch import is_main
from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.api.reading import Read
    from volumediff.data.survey import Spec
    from volumediff.evaluation.evaluate import EvaluationResult
    from volumediff.evaluation.generation import GenerationEvaluation
    from volumediff.evaluation.translation_case import Segments

__all__ = ["evaluate"]


def evaluate(
    results: Place | Sequence[Place],
    truth: Place | None = None,
    *,
    real: Place | None = None,
    run: Place | None = None,
    features: Place | None = None,
    training: Place | None = None,
    output: Place | None = None,
    html: bool = False,
    by: str | None = None,
    layout: "Spec" = "auto",
    read: "Read" = (),
    patients: Place | None = None,
    labels: Sequence[int] | None = None,
    tolerance_mm: float | None = None,
    absent: str = "skip",
    missed: str = "worst",
    segment_with: Place | None = None,
    replicates: int = 1000,
    seed: int = 0,
    allow_seen: bool = False,
    same_names: bool = False,
    report: Report = silent,
) -> "list[EvaluationResult] | list[GenerationEvaluation]":
    """Compares maps, segmentations or translations of one or more methods with the truth, or
    generated volumes with real ones.

    Arguments:
        results: folders of maps, of segmentations, of both, or of translations, one per method, or
            label maps of other programs, named after the cases; the first is the method in
            question. With `real`, folders of generated volumes, one per model
        truth: data set with masks or boxes; segmentations need label maps, translations the
            measured channels
        real: data set of real volumes that generated ones are compared with, in place of `truth`;
            of what follows it takes `layout`, `read`, `replicates`, `seed`, `output` and `html`
        run: that drew the generated volumes. Real ones are prepared as it asks, and those that it
            was trained on are known; without it all volumes are compared as they are
        features: vectors for KID, the Fréchet distance, precision and recall: a table (.csv or
            .tsv) with a case and its numbers in each row, a safetensors file of Med3D, or a run
        training: data set that the generating model was trained on, where `run` is not given
        output: folder for evaluation.json and the curves; None writes nothing
        html: whether report.html is written there too
        by: attribute of the cases that makes groups, a column of participants.tsv
        layout: of the truth; `auto` decides by the files that are there
        read: decisions on ambiguous files of the truth, in place of those that the results were
            made with
        patients: whose the cases are, where neither truth nor results say so, such as for results
            of other programs: a table (.csv or .tsv) with the columns `case` and `patient`, or a
            regular expression that finds the patient in the name of a case, such as `mouse[0-9]+`.
            Intervals are over patients
        labels: label values of segmentations to compare; None takes those that the methods know
        tolerance_mm: of the normalized surface dice; None is the longest side of a voxel
        absent: a label that neither truth nor segmentation of a volume has: `skip` leaves it out,
            `one` counts it as perfect
        missed: distances of a label that only one of them has: `worst` is the diagonal of the
            volume, `skip` leaves them out
        segment_with: segmentation run whose lesions in translated and in measured channels are
            compared; for translations
        replicates: number of bootstrap replicates
        seed: random seed of the bootstrap
        allow_seen: whether to go on although a model has seen volumes before; the measurements are
            then given with and without them
        same_names: whether patients with the names of those that a model has seen are other people
        report: receives what was left out, and why

    Returns:
        results of maps, then those of segmentations, each in the order of the folders; those of
        generated volumes in this order

    Raises:
        UsageError: no results, or none of the same cases
        DataError: no truth for them, volumes that a model has seen, or generated volumes that are
            on another grid than the real ones
    """
    from volumediff.api.generated import compare_generated
    from volumediff.api.reading import read_policy
    from volumediff.data.patients import patients_rule
    from volumediff.evaluation.evaluate import evaluate as compare
    from volumediff.evaluation.evaluate import localizations, segmentations, translations
    from volumediff.evaluation.segmentation_case import SegmentationRules
    from volumediff.evaluation.to_json import (
        segmentation_details,
        segmentation_values,
        to_json,
        translation_values,
    )
    from volumediff.evaluation.truths import recorded_policy
    from volumediff.metrics.label_agreement import AbsentLabels
    from volumediff.outputs.export import write_json
    from volumediff.reporting.report import report_of

    if html and output is None:
        raise UsageError("html: a report needs an output folder; give one.")
    folders = sources_of(results)
    if (truth is None) == (real is None):
        raise UsageError(
            "expected truth for maps and segmentations, or real for generated volumes, got "
            f"{'neither' if truth is None else 'both'}; give one of them."
        )
    if real is not None:
        return compare_generated(
            folders,
            real,
            run=run,
            features=features,
            training=training,
            output=output,
            html=html,
            layout=layout,
            read=read,
            replicates=replicates,
            seed=seed,
            report=report,
        )
    for name, value in (("run", run), ("features", features), ("training", training)):
        if value is not None:
            raise UsageError(f"{name} {value}: is for generated volumes; give real as well.")
    spec = known_layout(layout)
    policy = read_policy(read, recorded_policy(folders))
    try:
        rules = SegmentationRules(
            None if labels is None else tuple(sorted(set(labels))),
            tolerance_mm,
            AbsentLabels(absent, missed),
        )
    except ValueError as error:
        raise UsageError(str(error)) from None
    found = compare(
        folders,
        truth,
        by=by,
        layout=spec,
        policy=policy,
        patients=None if patients is None else patients_rule(patients),
        seed=seed,
        replicates=replicates,
        allow_seen=allow_seen,
        same_names=same_names,
        rules=rules,
        segments=_segments(segment_with),
        report=report,
    )
    if output is None or not is_main():
        return found
    from volumediff.reporting.curves import write_curves
    from volumediff.reporting.segmentation_curves import write_label_curves
    from volumediff.storage.folder import made

    target = made(output)
    maps, labelled = localizations(found), segmentations(found)
    content = {"truth": str(truth), "methods": to_json(maps)}
    if labelled:
        content["segmentation"] = segmentation_values(labelled)
        content["segmentation_details"] = segmentation_details(labelled)
    if drawn := translations(found):
        content["translation"] = translation_values(drawn)
    write_json(target / "evaluation.json", content)
    pictures = write_curves(target, maps) + write_label_curves(target, labelled)
    if html:
        page = target / "report.html"
        report_of(page, found, truth, by=by, layout=spec, policy=policy, pictures=pictures)
    return found


def _segments(run: Place | None) -> "Segments | None":
    """The label maps of a segmentation run as a function of named channels."""
    if run is None:
        return None
    from volumediff.inference.segment_channels import segments_channels
    from volumediff.runs.model_file import resolve
    from volumediff.runs.trained import load_trained

    return segments_channels(load_trained(resolve(run)))
