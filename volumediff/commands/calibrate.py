"""`volumediff calibrate`."""

from typing import Annotated

import typer

from volumediff.commands._options import (
    Classifier,
    DataRoot,
    Device,
    Memory,
    Run,
    Seed,
    Truth,
    Which,
    WhichOption,
    Words,
    out_line,
    say,
    trained_run,
)

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
) -> None:
    """Fit a method's residual normalization and thresholds on the run's own healthy volumes."""
    from volumediff.inference.calibrate import calibrate as fit
    from volumediff.inference.calibrate import load_method
    from volumediff.inference.classifier import load_classifier

    trained = trained_run(run, which, device, data, memory)
    trained.localizes()
    guide = None if classifier is None else load_classifier(classifier, trained)
    given = None if guide is None else guide.posterior
    row = load_method(trained, method, overrides or [], classifier=given, report=say)
    found = fit(trained, row, method, seed=seed, limit=volumes, truth=truth.value, report=say)
    limit = found.validation_threshold
    shown = "none" if limit is None else f"{limit:.4g}"
    out_line(f"{method}: calibrated on {found.volumes} volumes, validation threshold {shown}")
