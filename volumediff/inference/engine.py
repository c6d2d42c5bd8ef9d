"""Localization with a trained run: settles what all cases share, then goes file by file."""

from collections.abc import Callable, Sequence
from pathlib import Path

from volumediff.calibration.calibrate import calibration_for, load_method
from volumediff.calibration.site import find_site, site_calibration
from volumediff.evaluation.leakage import seen_with
from volumediff.inference.localizing import REGION, Localizing
from volumediff.inference.regions import check_region, find_regions, missing_reasons
from volumediff.inference.saliency import saliency_maps
from volumediff.outputs.batch import Summary, process
from volumediff.runs.inputs import find_inputs
from volumediff.runs.trained import Trained

__all__ = ["localize"]


def localize(
    trained: Trained,
    source: Path | str,
    out: Path | str,
    *,
    method: str,
    overrides: Sequence[str] = (),
    classifier: Path | str | None = None,
    saliency: Path | None = None,
    channels: Sequence[str] | None = None,
    seed: int = 0,
    trace: bool = True,
    region: Path | str | None = None,
    overwrite: bool = False,
    calibration_limit: int | None = None,
    site: Path | str | None = None,
    report: Callable[[str], None] | None = None,
    announce: Callable[[str], None] = lambda line: None,
) -> Summary:
    """Localizes anomalies in every case of the source.

    Arguments:
        trained: a run of a model of healthy volumes
        source: file, folder or manifest
        out: output folder
        method: row by name or path
        overrides: `slot.argument=value` words for the row
        classifier: run of the classifier of noisy states that the row takes
        saliency: map from elsewhere, for rows with a first pass: a file for one case, or a folder
            with <case>_saliency.nii.gz; it takes the place of the row's own first pass
        channels: names of the images; None takes those of the run
        seed: of the method's noise
        trace: whether masks and maps of the blocks are written
        region: mask, or folder of masks, of what is to be redrawn; for the policy `given`
        overwrite: whether results of other settings in `out` may be replaced
        calibration_limit: most volumes to calibrate on, if that is still to do
        site: healthy volumes of the site that the source is of; thresholds are those of the site
        report: receives a line per case; None shows progress on the terminal
        announce: receives what happens before the first case

    Raises:
        UsageError: method, run, source and output folder do not fit
        DataError: the source has no cases, or the disk is full
    """
    trained.localizes()
    words = [*overrides, *([] if saliency is None else ["first={route: external}"])]
    runs = {"classifier": classifier}
    row = load_method(trained, method, words, runs=runs, report=announce)
    check_region(row, method, region)
    names = trained.image_names(channels)
    scalars = bool(trained.recipe.scalars)
    cases, problems = find_inputs(source, channels=names, siblings=scalars)
    regions: dict[str, Path] = {}
    if region is not None:
        regions, missing = find_regions(region, cases)
        problems = {**problems, **missing_reasons(missing, region)}
        cases = [case for case in cases if case.id in regions]
    maps = {} if saliency is None else saliency_maps(saliency, [case.id for case in cases])
    place = None if site is None else find_site(trained, site, channels=channels)
    calibration = calibration_for(
        trained, row, method, seed=seed, limit=calibration_limit, report=announce
    )
    if place is not None:
        calibration, drift = site_calibration(
            trained, row, method, place, own=calibration, seed=seed, report=announce
        )
        for line in drift.lines():
            announce(line)
    work = Localizing(
        trained=trained,
        row=row,
        method=method,
        overrides=overrides,
        calibration=calibration,
        seen=seen_with(trained, row, site=place, saliency=bool(maps)),
        seed=seed,
        trace=trace,
        site=place,
        regions=regions,
        saliency=maps,
    )
    return process(
        cases,
        out,
        settings=work.settings,
        work=work,
        also={name: {REGION: path} for name, path in regions.items()},
        problems=problems,
        overwrite=overwrite,
        report=report,
    )
