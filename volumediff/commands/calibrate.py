"""`volumediff calibrate`: normalization and thresholds of a method, on healthy volumes."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.run import Run
from volumediff.commands._account import Strict, account_for, accounts
from volumediff.commands._options import (
    Channels,
    Classifier,
    LayoutOption,
    Method,
    MethodWords,
    Seed,
    TruthChoice,
    defaults,
    names_of,
    out_line,
    say,
    spec_of,
)
from volumediff.commands._run_choice import RunChoice, with_run
from volumediff.commands._written import WrittenFiles
from volumediff.errors import UsageError

__all__ = ["calibrate"]

WORK = defaults(Run.calibrate)


@accounts
@with_run(without=["domain"])
def calibrate(
    run: RunChoice,
    overrides: MethodWords = None,
    method: Method = WORK["method"],
    classifier: Classifier = WORK["classifier"],
    seed: Seed = WORK["seed"],
    volumes: Annotated[
        int | None,
        typer.Option(
            "--volumes",
            min=1,
            help="Largest number of volumes to use from each part of the split.",
        ),
    ] = WORK["volumes"],
    truth: Annotated[
        TruthChoice,
        typer.Option(
            "--truth",
            help="Lesions that the validation threshold is chosen on: synthetic, or label.",
        ),
    ] = WORK["truth"],
    site: Annotated[
        Path | None,
        typer.Option(
            "--site",
            help="Healthy volumes of another site, on which its own thresholds are fitted.",
        ),
    ] = None,
    healthy: Annotated[
        list[Path] | None,
        typer.Option(
            "--healthy",
            help="Healthy volumes that are added to the calibration volumes of the run, for this "
            "and all later calibrations; may be repeated.",
        ),
    ] = WORK["healthy"],
    channels: Channels = None,
    layout: LayoutOption = WORK["layout"],
    strict: Strict = False,
) -> None:
    """Fit a method's residual normalization and thresholds on the run's own healthy volumes.

    volumediff calibrate --run runs/brain --method scan

    With --healthy, add healthy volumes to those of the run first: they must be new to it.
    With --site, fit the thresholds alone on healthy volumes of another site, and say how far its
    maps and scores have drifted.
    """
    loaded = run.load()
    written = WrittenFiles(loaded.folder)
    words = overrides or []
    if site is not None and healthy:
        raise UsageError(
            "--healthy adds volumes to the run, --site has its own; give one of them."
        )
    given = [*(healthy or []), *([] if site is None else [site])]
    account_for(given, layout=spec_of(layout), channels=names_of(channels), strict=strict)
    if site is None:
        found = loaded.calibrate(
            method,
            overrides=words,
            classifier=classifier,
            healthy=healthy,
            channels=names_of(channels),
            layout=spec_of(layout),
            volumes=volumes,
            truth=truth.value,
            seed=seed,
            report=say,
        )
        place, name, limit = "", "validation threshold", found.validation_threshold
    else:
        there = loaded.calibrate_site(
            site,
            method,
            overrides=words,
            classifier=classifier,
            channels=names_of(channels),
            layout=spec_of(layout),
            volumes=volumes,
            seed=seed,
            report=say,
        )
        for line in there.drift.lines():
            out_line(line)
        found, limit = there.calibration, there.threshold
        place, name = f" of {there.site}", "threshold"
    shown = "none" if limit is None else f"{limit:.4g}"
    only = "" if site is not None else " (for threshold=validation)"
    out_line(f"{method}: calibrated on {found.volumes} volumes{place}, {name} {shown}{only}")
    where = "" if site is None else f" --site {site}"
    # With other settings of the method, `localize` would calibrate anew.
    settings = f" {shlex.join(words)}" if words else ""
    written.finish(
        then=f"volumediff localize INPUT --run {run.place} -o out/ --method {method}{where}"
        f"{settings}"
    )
