"""Localization with a trained run: prepares what all cases share, then works file by file."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from volumediff.anomaly.methods._base import Method
from volumediff.calibration.of_run import calibration_for, load_method
from volumediff.calibration.site import find_site, site_calibration
from volumediff.data.cases import Case
from volumediff.evaluation.leakage import seen_with
from volumediff.inference.case_by_case import FoundCases, find_cases, work_through
from volumediff.inference.conditions import check_names
from volumediff.inference.external_maps import saliency_maps
from volumediff.inference.fill import Filling, filling
from volumediff.inference.localize_case import REGION, SALIENCY, Localizing
from volumediff.inference.options import LocalizeOptions
from volumediff.inference.user_regions import check_region, find_regions, missing_reasons
from volumediff.outputs.batch import Result, Summary
from volumediff.runs.inputs import Examination, examination_of, find_inputs
from volumediff.runs.preparation import preparation_of
from volumediff.runs.trained import Trained
from volumediff.samples.seen_record import seen_by
from volumediff.storage.digests import sha256_of_file

__all__ = ["Chosen", "choose", "localize", "settle"]

Announce = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class Chosen:
    """A method with the models that it takes, before anything is calibrated.

    Arguments:
        trained: the run
        options: as they were asked for
        row: the method
        saliency: whether maps from elsewhere take the place of the method's first pass
        fills: draws channels that an examination lacks
    """

    trained: Trained
    options: LocalizeOptions
    row: Method
    saliency: bool
    fills: Filling | None


def choose(
    trained: Trained,
    options: LocalizeOptions,
    *,
    region: bool,
    saliency: bool,
    announce: Announce = lambda line: None,
) -> Chosen:
    """The method of a localization.

    Arguments:
        trained: a run of a model of healthy volumes
        options: method and the rest
        region: whether there is a region to redraw
        saliency: whether there are maps in place of the method's first pass
        announce: receives progress lines

    Raises:
        UsageError: method, run and what is given do not fit
    """
    trained.localizes()
    check_names(trained, options.conditions)
    words = [*options.overrides, *(["first={route: external}"] if saliency else [])]
    runs = {"classifier": options.classifier}
    row = load_method(trained, options.method, words, runs=runs, report=announce)
    check_region(row, options.method, region)
    fills = None if options.fill is None else filling(trained, options.fill)
    if fills is not None:
        announce(f"cases without {', '.join(fills.drawn)} get it from {', '.join(fills.sources)}")
    return Chosen(trained, options, row, saliency, fills)


def settle(chosen: Chosen, *, announce: Announce = lambda line: None) -> Localizing:
    """The localization with its calibration, fitted now and kept in the run where there is none.

    Raises:
        UsageError: the run's or the site's volumes are not reachable, or too few
    """
    trained, options, row, fills = chosen.trained, chosen.options, chosen.row, chosen.fills
    place = None
    if options.site is not None:
        place = find_site(trained, options.site, channels=options.channels, layout=options.layout)
    calibration = calibration_for(
        trained,
        row,
        options.method,
        seed=options.seed,
        limit=options.calibration_volumes,
        report=announce,
    )
    if place is not None:
        calibration, drift = site_calibration(
            trained,
            row,
            options.method,
            place,
            own=calibration,
            seed=options.seed,
            report=announce,
        )
        for line in drift.lines():
            announce(line)
    seen = seen_with(trained, row, site=place, saliency=chosen.saliency)
    if fills is not None:
        seen = seen | seen_by(fills.work.trained.run)
    return Localizing(
        trained=trained,
        row=row,
        options=options,
        calibration=calibration,
        seen=seen,
        fills=fills,
        site=place,
        preparation=preparation_of(trained),
    )


def localize(
    trained: Trained,
    source: Path | str | Sequence[Path | str],
    out: Path | str,
    options: LocalizeOptions,
    *,
    region: Path | str | None = None,
    saliency: Path | str | None = None,
    overwrite: bool = False,
    report: Callable[[str], None] | None = None,
    announce: Announce = lambda line: None,
) -> Summary:
    """Localizes anomalies in every case of the sources and writes the results.

    Arguments:
        trained: a run of a model of healthy volumes
        source: file, folder or manifest, or several of them
        out: output folder
        options: method and the rest
        region: mask, or folder of masks, of what is to be redrawn; for the selector `given`
        saliency: map from elsewhere, for methods with a first pass: a file for one case, or a
            folder with <case>_saliency.nii.gz; it takes the place of the method's own first pass
        overwrite: whether results of other settings in `out` may be replaced
        report: receives a line per case; None shows progress on the terminal
        announce: receives what happens before the first case

    Raises:
        UsageError: method, run, sources and output folder do not fit
        DataError: a source has no cases, or the disk is full
    """
    chosen = choose(
        trained,
        options,
        region=region is not None,
        saliency=saliency is not None,
        announce=announce,
    )
    if chosen.fills is None:
        find = partial(find_inputs, channels=trained.image_names(options.channels))
    else:
        find = chosen.fills.find
    found = find_cases(trained, source, find, layout=options.layout, dicom=options.dicom)
    regions: dict[str, Path] = {}
    if region is not None:
        regions, missing = find_regions(region, found.cases)
        found = FoundCases(
            [case for case in found.cases if case.id in regions],
            {**found.problems, **missing_reasons(missing, region)},
        )
    maps = {}
    if saliency is not None:
        maps = saliency_maps(Path(saliency), [case.id for case in found.cases])
    # After the sources: a calibration can take long, and a wrong path is said at once.
    work = settle(chosen, announce=announce)
    shown = {name: sha256_of_file(path) for name, path in maps.items()}

    def read(case: Case, digests: Mapping[str, str]) -> Examination:
        return examination_of(
            case,
            {**digests, SALIENCY: shown[case.id]} if case.id in shown else digests,
            policy=trained.preprocessing.policy,
            region=regions.get(case.id),
            saliency=maps.get(case.id),
        )

    def one(examination: Examination, folder: Path) -> Result:
        localized = work(examination)
        files = localized.write(folder)
        if options.dicom:
            files += localized.write_dicom(folder)
        facts = {"score": localized.found.score, **asdict(localized.cost)}
        return Result(files, facts, localized.facts["warnings"])

    return work_through(
        trained,
        found,
        out,
        one,
        settings={**work.settings, "saliency": shown},
        read=read,
        also={name: {REGION: path} for name, path in regions.items()},
        overwrite=overwrite,
        report=report,
    )
