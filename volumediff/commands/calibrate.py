"""`volumediff calibrate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from volumediff.commands._options import (
    Channels,
    Classifier,
    DataRoot,
    Device,
    Memory,
    Run,
    Seed,
    SiteFolder,
    Truth,
    Which,
    WhichOption,
    Words,
    names_of,
    out_line,
    say,
    trained_run,
)

if TYPE_CHECKING:
    from volumediff.anomaly.methods._base import Method
    from volumediff.runs.trained import Trained

__all__ = ["calibrate"]


def calibrate(
    run: Run,
    overrides: Words = None,
    method: Annotated[str, typer.Option("--method", help="Row by name or YAML file.")] = "scan",
    classifier: Classifier = None,
    which: WhichOption = Which.best,
    device: Device = "auto",
    memory: Memory = None,
    seed: Seed = 0,
    data: DataRoot = None,
    volumes: Annotated[
        int | None, typer.Option("--volumes", min=1, help="Most volumes of each part to use.")
    ] = None,
    truth: Annotated[
        Truth, typer.Option("--truth", help="Lesions that choose the validation threshold.")
    ] = Truth.synthetic,
    site: SiteFolder = None,
    channels: Channels = None,
) -> None:
    """Fit a method's residual normalization and thresholds on the run's own healthy volumes.

    With --site, fit the thresholds alone on healthy volumes of another site, and say how far its
    maps and scores have drifted.
    """
    from volumediff.calibration.calibrate import calibrate as fit
    from volumediff.calibration.calibrate import load_method

    trained = trained_run(run, which, device, data, memory)
    trained.localizes()
    runs = {"classifier": classifier}
    row = load_method(trained, method, overrides or [], runs=runs, report=say)
    if site is not None:
        _of_site(trained, row, method, site, names_of(channels), seed, volumes)
        return
    found = fit(trained, row, method, seed=seed, limit=volumes, truth=truth.value, report=say)
    limit = found.validation_threshold
    shown = "none" if limit is None else f"{limit:.4g}"
    out_line(f"{method}: calibrated on {found.volumes} volumes, validation threshold {shown}")


def _of_site(
    trained: "Trained",
    row: "Method",
    method: str,
    folder: Path,
    channels: tuple[str, ...] | None,
    seed: int,
    volumes: int | None,
) -> None:
    from volumediff.calibration.calibrate import calibration_for
    from volumediff.calibration.site import find_site, site_calibration

    place = find_site(trained, folder, channels=channels)
    own = calibration_for(trained, row, method, seed=seed, report=say)
    found, drift = site_calibration(
        trained, row, method, place, own=own, seed=seed, limit=volumes, again=True, report=say
    )
    for line in drift.lines():
        out_line(line)
    value = row.threshold(found)
    shown = "none" if value is None else f"{value:.4g}"
    out_line(f"{method}: calibrated on {found.volumes} volumes of {place.name}, threshold {shown}")
