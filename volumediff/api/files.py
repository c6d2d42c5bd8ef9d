"""Localization, segmentation and translation of many files; finished cases are skipped.

These are what the commands `localize`, `segment`, `translate` and `sample` call.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from volumediff.api.arguments import Place, Report, silent
from volumediff.api.options import (
    localize_options,
    sample_options,
    segment_options,
    translate_options,
)
from volumediff.api.run import Run
from volumediff.inference.options import (
    LocalizeOptions,
    SampleOptions,
    SegmentOptions,
    TranslateOptions,
)

if TYPE_CHECKING:
    from volumediff.data.survey import Spec
    from volumediff.outputs.batch import Summary

__all__ = ["localize_files", "sample_files", "segment_files", "translate_files"]


def localize_files(
    run: Run,
    inputs: Place | Sequence[Place],
    output: Place,
    *,
    method: Place | None = None,
    overrides: Sequence[str] = LocalizeOptions.overrides,
    classifier: Place | None = LocalizeOptions.classifier,
    channels: Sequence[str] | None = LocalizeOptions.channels,
    layout: "Spec" = LocalizeOptions.layout,
    region: Place | None = None,
    saliency: Place | None = None,
    site: Place | None = LocalizeOptions.site,
    seed: int = LocalizeOptions.seed,
    trace: bool = LocalizeOptions.trace,
    force: bool = LocalizeOptions.force,
    limits: bool = LocalizeOptions.limits,
    conditions: Mapping[str, str | float] | None = None,
    calibration_volumes: int | None = LocalizeOptions.calibration_volumes,
    fill: Place | None = LocalizeOptions.fill,
    dicom: bool = LocalizeOptions.dicom,
    overwrite: bool = False,
    progress: Report | None = None,
    report: Report = silent,
    **components: Any,
) -> "Summary":
    """Localizes anomalies in many files and writes the results; finished cases are skipped.

    Arguments:
        run: that works on them
        inputs: volumes, folders of cases or datalists
        output: folder of the results
        layout: of the folders; `auto` decides by the files that are there
        region: a mask, or a folder of masks by case
        saliency: a map, or a folder with <case>_saliency.nii.gz
        conditions: attributes of all cases, such as age, in place of those in their tables;
            `estimate` looks for the likeliest value
        fill: translation run that draws channels which a case lacks
        dicom: whether findings and map are written as DICOM objects, too; every input is the
            folder of a DICOM series then
        overwrite: whether results of other settings in the folder may be replaced
        progress: receives a line per case; None shows progress on the terminal
        others: as for `Run.localize`

    Raises:
        UsageError: method, run, inputs and output folder do not fit
        DataError: the inputs have no cases, or the disk is full
    """
    from volumediff.api.model_files import method_of
    from volumediff.inference.localize_files import localize

    method, overrides = method_of(run.trained, method, overrides, LocalizeOptions.method)
    options = localize_options(
        method,
        overrides,
        components,
        classifier=classifier,
        channels=channels,
        layout=layout,
        site=site,
        calibration_volumes=calibration_volumes,
        seed=seed,
        trace=trace,
        force=force,
        limits=limits,
        conditions=conditions,
        fill=fill,
        dicom=dicom,
    )
    return localize(
        run.trained,
        inputs,
        output,
        options,
        region=region,
        saliency=saliency,
        overwrite=overwrite,
        report=progress,
        announce=report,
    )


def segment_files(
    run: Run,
    inputs: Place | Sequence[Place],
    output: Place,
    *,
    method: Place | None = SegmentOptions.method,
    overrides: Sequence[str] = SegmentOptions.overrides,
    channels: Sequence[str] | None = SegmentOptions.channels,
    layout: "Spec" = SegmentOptions.layout,
    seed: int = SegmentOptions.seed,
    write_samples: bool = SegmentOptions.write_samples,
    force: bool = SegmentOptions.force,
    conditions: Mapping[str, str | float] | None = None,
    fill: Place | None = SegmentOptions.fill,
    dicom: bool = SegmentOptions.dicom,
    overwrite: bool = False,
    progress: Report | None = None,
    report: Report = silent,
    **components: Any,
) -> "Summary":
    """Segments many files and writes the results; finished cases are skipped.

    Arguments:
        run: that works on them
        inputs: volumes, folders of cases or datalists
        output: folder of the results
        write_samples: whether the label map of every sample is written
        conditions: as for `localize_files`
        fill: translation run that draws channels which a case lacks
        dicom: whether labels and probabilities are written as DICOM objects, too; every input is
            the folder of a DICOM series then
        overwrite: whether results of other settings in the folder may be replaced
        progress: receives a line per case; None shows progress on the terminal
        report: receives what happens before the first case
        others: as for `Run.segment`

    Raises:
        UsageError: method, run, inputs and output folder do not fit
        DataError: the inputs have no cases, or the disk is full
    """
    from volumediff.api.model_files import method_of
    from volumediff.inference.segment import segment

    method, overrides = method_of(run.trained, method, overrides, SegmentOptions.method)
    options = segment_options(
        method,
        overrides,
        components,
        channels=channels,
        layout=layout,
        seed=seed,
        write_samples=write_samples,
        force=force,
        conditions=conditions,
        fill=fill,
        dicom=dicom,
    )
    return segment(
        run.trained,
        inputs,
        output,
        options,
        overwrite=overwrite,
        report=progress,
        announce=report,
    )


def translate_files(
    run: Run,
    inputs: Place | Sequence[Place],
    output: Place,
    *,
    method: Place | None = TranslateOptions.method,
    overrides: Sequence[str] = TranslateOptions.overrides,
    channels: Sequence[str] | None = TranslateOptions.channels,
    layout: "Spec" = TranslateOptions.layout,
    seed: int = TranslateOptions.seed,
    force: bool = TranslateOptions.force,
    overwrite: bool = False,
    progress: Report | None = None,
    report: Report = silent,
    **components: Any,
) -> "Summary":
    """Makes the missing channels of many cases and writes them; finished cases are skipped.

    Arguments:
        run: that works on them
        inputs: volumes, folders of cases or datalists, with the run's source channels
        output: folder of the results
        overwrite: whether results of other settings in the folder may be replaced
        progress: receives a line per case; None shows progress on the terminal
        report: receives what happens before the first case
        others: as for `Run.translate`

    Raises:
        UsageError: method, run, inputs and output folder do not fit
        DataError: the inputs have no cases, or the disk is full
    """
    from volumediff.inference.translate import translate

    options = translate_options(
        method,
        overrides,
        components,
        channels=channels,
        layout=layout,
        seed=seed,
        force=force,
    )
    return translate(
        run.trained,
        inputs,
        output,
        options,
        overwrite=overwrite,
        report=progress,
        announce=report,
    )


def sample_files(
    run: Run,
    output: Place | None = None,
    n: int = 1,
    *,
    overrides: Sequence[str] = SampleOptions.overrides,
    shape: tuple[int, int, int] | None = SampleOptions.shape,
    label: int = SampleOptions.label,
    attributes: Mapping[str, str | float] | None = None,
    seed: int = SampleOptions.seed,
    overwrite: bool = False,
    progress: Report | None = None,
    **components: Any,
) -> "Summary":
    """Draws new volumes and writes them as NIfTI; finished samples are skipped.

    Arguments:
        run: that works on them
        output: folder; None takes `samples` in the run's folder
        n: number of volumes
        overwrite: whether results of other settings in the folder may be replaced
        progress: receives a line per sample; None shows progress on the terminal
        others: as for `Run.sample`

    Raises:
        UsageError: the run cannot sample without an image, or has no shape of its own
    """
    from volumediff.inference.sample import sample

    options = sample_options(
        overrides, components, shape=shape, label=label, attributes=attributes, seed=seed
    )
    folder = run.folder / "samples" if output is None else output
    return sample(run.trained, folder, n, options, overwrite=overwrite, report=progress)
