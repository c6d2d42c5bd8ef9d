"""Functions that need no loaded run: train, plan, check, prepare, restore, evaluate."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from volumediff.api.arguments import Place, Report, silent, sources_of
from volumediff.api.layouts import known_layout
from volumediff.api.overrides import words_of
from volumediff.distributed.launch import is_main
from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.alignment.prepare import Preparation
    from volumediff.api.reading import Read
    from volumediff.data.check import CheckLine
    from volumediff.data.survey import Spec
    from volumediff.evaluation.evaluate import EvaluationResult
    from volumediff.evaluation.generation import GenerationEvaluation
    from volumediff.evaluation.translation_case import Segments
    from volumediff.outputs.batch import Summary
    from volumediff.planning.planner import Plan
    from volumediff.proposals.proposal import Proposal
    from volumediff.settings.run_config import RunConfig

__all__ = [
    "check",
    "checking",
    "evaluate",
    "plan",
    "prepare",
    "propose",
    "restore",
    "run_config",
    "train",
]


def run_config(
    config: Place | Mapping[str, Any],
    words: Sequence[str] = (),
    sections: Mapping[str, Any] | None = None,
) -> "RunConfig":
    """A configuration with overrides.

    Arguments:
        config: name of a shipped one, YAML file, or its content as nested dictionaries
        words: `key=value` overrides
        sections: the same as keyword arguments

    Raises:
        UsageError: one line with the key, what it takes and what came
    """
    from volumediff.settings.run_config import load_run_config, parse, with_words

    every = [*words, *words_of(sections or {})]
    if isinstance(config, Mapping):
        return parse(with_words(config, every))
    return load_run_config(config, every)


def train(
    config: Place | Mapping[str, Any],
    *,
    data: Place | Mapping[str, Any] | None = None,
    output: Place | None = None,
    overrides: Sequence[str] = (),
    **sections: Any,
) -> Path:
    """Trains a run, or goes on with it: the same call resumes.

    Arguments:
        config: name of a shipped configuration, YAML file, or nested dictionaries
        data: folder of the volumes, or the section `data`
        output: folder of the run
        overrides: `key=value` overrides
        sections: other keys of the configuration, such as `optim={"steps": 1000}`

    Returns:
        the folder of the run, for `load`

    Raises:
        UsageError: a wrong key or value, or a folder with another run
        DataError: volumes that cannot be used
    """
    from volumediff.training.loop import train as work

    return work(run_config(config, overrides, {**_place(data, output), **sections}))


def _place(data: Place | Mapping[str, Any] | None, output: Place | None) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if data is not None:
        found["data"] = data if isinstance(data, Mapping) else {"root": str(data)}
    if output is not None:
        found["output"] = str(output)
    return found


def plan(
    config: Place | Mapping[str, Any],
    *,
    vram_gb: float | None = None,
    shape: tuple[int, int, int] | None = None,
    mode: Literal["train", "infer"] = "train",
    overrides: Sequence[str] = (),
    **sections: Any,
) -> "Plan":
    """Predicts memory without data or GPU, and chooses the fastest memory policy that fits a card.

    Arguments:
        config: as for `train`
        vram_gb: memory of the card; None lists memory policies and chooses none
        shape: voxels of the volumes; None takes those of the configuration
        mode: a training step, or inference
        overrides, sections: as for `train`

    Raises:
        UsageError: a wrong key or value, or a configuration without a shape
    """
    import math

    from volumediff.planning.planner import at_shape
    from volumediff.planning.planner import plan as look

    if vram_gb is not None and not 0 < vram_gb < math.inf:
        raise UsageError(f"vram {vram_gb:g}: expected the card's memory in GB, above 0.")
    wanted = at_shape(run_config(config, overrides, sections), shape)
    return look(wanted, mode=mode, vram_gb=vram_gb)


def check(
    data: Place | Sequence[Place],
    *,
    layout: "Spec" = "auto",
    channels: Sequence[str] | None = None,
    read: "Read" = (),
    config: Place | None = None,
    overrides: Sequence[str] = (),
) -> "list[CheckLine]":
    """Reads every volume of a data set and lists what is wrong or noteworthy, and how `train`
    would split it.

    Arguments:
        data: volumes, folders, datalists or tables of cases; one or several
        layout: of the folders; `auto` decides by the files that are there
        channels: names of the images that every case must have
        read: decisions on ambiguous files, such as `{"no_forms": "ras"}`, in place of the
            configuration's; see `volumediff.data.read_policy`
        config: a configuration that is to be trained on the data; then it is also listed how much
            of each label its spacing leaves, and what else it would refuse about labels
        overrides: `key=value` overrides of the configuration

    Raises:
        DataError: there is no case at all
        UsageError: no such layout or configuration, or overrides without one
    """
    found = checking(
        data, layout=layout, channels=channels, read=read, config=config, overrides=overrides
    )
    return [line for lines in found for line in lines]


def checking(
    data: Place | Sequence[Place],
    *,
    layout: "Spec" = "auto",
    channels: Sequence[str] | None = None,
    read: "Read" = (),
    config: Place | None = None,
    overrides: Sequence[str] = (),
    start: Callable[[int], None] = lambda count: None,
) -> "Iterator[list[CheckLine]]":
    """The same as `check`, as it goes on: the lines of each case when it is read.

    Arguments:
        start: receives the number of cases before the first is read
        others: as for `check`
    """
    from volumediff.api.reading import read_policy
    from volumediff.data.check import Checking, CheckLine
    from volumediff.data.intensity import Percentile
    from volumediff.data.survey import survey_sources
    from volumediff.samples.sources import label_remarks, plan_of, split_of
    from volumediff.settings.sections import Data

    spec, sources = known_layout(layout), sources_of(data)
    if config is None and overrides:
        raise UsageError(
            f"{overrides[0]}: expected a configuration that it changes, got none; name one, such "
            "as wavelet_128."
        )
    wanted = None if config is None else run_config(config, overrides)
    section = Data() if wanted is None else wanted.data
    channels = section.channels if channels is None else channels
    policy = read_policy(read, section.read)
    cases, problems = survey_sources(sources, spec, channels)
    start(len(cases))
    intensity = Percentile() if wanted is None else plan_of(section).intensity
    yield from Checking(cases, problems, policy, intensity).lines()
    if section.patients is not None:
        cases = section.patients.named(cases)
    if len(cases) > 1:
        text = split_of(cases, section).note(section.split.least_calibration)
        word = "train by default" if wanted is None else f"train {config}"
        yield [CheckLine("", "", "info", "split", f"{word}: {text}")]
    if wanted is not None:
        yield [
            CheckLine("", "", remark.severity, remark.code, remark.message)
            for remark in label_remarks(wanted, cases)
        ]


def propose(
    data: Place,
    *,
    goal: Literal["localization", "segmentation"] = "localization",
    pipeline: Literal["auto", "patch", "wavelet", "pseudo3d"] = "auto",
    vram_gb: float | None = None,
    output: Place = "runs/run",
    layout: "Spec" = "auto",
    channels: Sequence[str] | None = None,
    read: "Read" = (),
    progress: Callable[[int, int], None] = lambda count, total: None,
    report: Report = silent,
) -> "Proposal":
    """Looks at a data set and proposes a complete configuration, with a reason for each choice.

    `train` takes its `config`, and `to_yaml()` is the file that `volumediff init` writes.

    Arguments:
        data: folder, datalist or table of cases
        goal: a model of healthy volumes that localizes anomalies, or the segmentation of labels
        pipeline: `auto` takes pseudo3d for thick slices, else wavelet
        vram_gb: memory of the card in GB; None takes that of the GPU that is found
        output: folder of the run
        layout, channels, read: as for `check`
        progress: receives how many cases are read, and of how many
        report: receives what is being planned

    Raises:
        DataError: no case, a file that is refused, or data that do not suit the goal
        UsageError: nothing fits the card, or arguments that do not fit
    """
    import math

    import torch

    from volumediff.api.reading import read_policy
    from volumediff.proposals.measured import measure
    from volumediff.proposals.proposal import propose as choose

    if vram_gb is not None and not 0 < vram_gb < math.inf:
        raise UsageError(f"vram {vram_gb:g}: expected the card's memory in GB, above 0.")
    if vram_gb is None and torch.cuda.is_available():
        vram_gb = torch.cuda.get_device_properties(0).total_memory / 1e9
    found = measure(
        Path(data),
        layout=known_layout(layout),
        channels=channels,
        policy=read_policy(read),
        done=progress,
    )
    return choose(
        found, goal=goal, pipeline=pipeline, vram_gb=vram_gb, output=output, report=report
    )


def prepare(
    raw: Place | Sequence[Place],
    output: Place,
    *,
    template: Place = "mni152",
    template_mask: Place | None = None,
    mask: Literal["given", "template", "none"] = "template",
    strip: bool = False,
    n4: bool = True,
    spacing_mm: float | None = None,
    layout: "Spec" = "auto",
    channels: Sequence[str] | None = None,
    read: "Read" = (),
    overwrite: bool = False,
    progress: Report | None = None,
) -> "Preparation":
    """Brings raw volumes to a template: bias field, brain mask, affine registration, resampling.

    Arguments:
        raw: volumes or data sets in any layout, one or several
        output: folder of the prepared data set
        template: `mni152`, or a NIfTI file
        template_mask: mask of the object in a template file
        mask: of the brain: `given` (<case>_brainmask beside the images), `template` (brought back,
            for volumes with skull), `none` (volumes show the brain alone)
        strip: whether what is outside of the mask is emptied
        n4: whether the bias field is corrected; not for CT
        spacing_mm: of the outputs; None takes the template's own
        layout, channels, read: as for `check`
        overwrite: whether results of other settings in the folder may be replaced
        progress: receives a line per case; None shows progress on the terminal

    Raises:
        UsageError: arguments that do not fit, or a folder with results of other settings
        DataError: the data set has no cases, or the disk is full
    """
    import math

    from volumediff.alignment.aligning import BrainMask, Steps
    from volumediff.alignment.prepare import prepare as work
    from volumediff.api.reading import read_policy
    from volumediff.data.alignment_template import mni152, template_from

    if spacing_mm is not None and not 0 < spacing_mm < math.inf:
        raise UsageError(f"spacing {spacing_mm:g}: expected millimetres above 0.")
    sources = sources_of(raw)
    for source in sources:
        if not source.exists():
            raise UsageError(f"{source}: expected a volume or a data set, nothing is there.")
    own = str(template) == "mni152"
    if not own and not Path(template).is_file():
        raise UsageError(f"template {template}: expected mni152 or a NIfTI file.")
    if own and template_mask is not None:
        raise UsageError("template mask: is for a template file; mni152 has its own.")
    return work(
        sources,
        output,
        template=mni152() if own else template_from(template, template_mask),
        steps=Steps(mask=BrainMask(mask), strip=strip, n4=n4, read=read_policy(read)),
        spacing_mm=spacing_mm,
        layout=known_layout(layout),
        channels=channels,
        overwrite=overwrite,
        report=progress,
    )


def restore(
    maps: Place | Sequence[Place],
    output: Place,
    *,
    prepared: Place,
    channel: str | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> "Summary":
    """Brings maps and masks of prepared volumes back to the grids of the original images.

    Arguments:
        maps: folders of results for prepared volumes, one or several
        output: folder of the restored ones
        prepared: folder that `prepare` wrote
        channel: image whose grid is wanted; None takes the first
        overwrite: whether results of other settings in the folder may be replaced
        progress: receives a line per case; None shows progress on the terminal

    Raises:
        UsageError: a folder is not what it should be, or there are no maps
        DataError: the disk is full
    """
    from volumediff.alignment.restore import restore as work

    return work(
        sources_of(maps), prepared, output, channel=channel, overwrite=overwrite, report=progress
    )


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
