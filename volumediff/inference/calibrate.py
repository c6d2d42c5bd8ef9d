"""Calibration of a method on a run's own healthy volumes, stored in the run.

RUN/calibration/<method>/<weights>-<method's fingerprint>.{safetensors,json} holds the residual
normalization and the thresholds, RUN/calibration/atlas.safetensors the healthy atlas. Both names
say what they belong to: after more training, or with another setting, they are fitted anew.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from volumediff.anomaly.baselines import Atlas, AtlasZ, Baseline
from volumediff.anomaly.calibrate import fit, validate
from volumediff.anomaly.calibration import Calibration, Example
from volumediff.anomaly.localizer import Localizer
from volumediff.anomaly.rows import load_row
from volumediff.errors import UsageError
from volumediff.inference.lesioned import Truth, lesioned
from volumediff.inference.trained import Trained

__all__ = ["calibrate", "calibration_for", "load_method", "needs_calibration"]

Row = Localizer | Baseline
PAUSE = 15.0  # seconds between two lines


def load_method(trained: Trained, name: str, overrides: Sequence[str] = ()) -> Row:
    """The method of a row, with the run's healthy atlas where it needs one.

    Raises:
        UsageError: no such row, or one that does not suit the run
    """
    method = load_row(name, overrides=overrides)
    if isinstance(method, AtlasZ):
        method = load_row(name, overrides=overrides, atlas=_atlas(trained))
    try:
        method.check(trained.model)
    except ValueError as error:
        raise UsageError(f"--method {name}: does not suit {trained.run}: {error}") from None
    return method


def needs_calibration(method: Row) -> bool:
    """Whether a method's map or mask needs healthy volumes first."""
    parts = (method.threshold.calibrated, method.score.calibrated)
    return method.normalize.fitted or any(parts)


def calibration_for(
    trained: Trained,
    method: Row,
    name: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Calibration | None:
    """The stored calibration of a method, fitted now if there is none; None if none is needed.

    Raises:
        UsageError: the run's data are not reachable, or too few for the method
    """
    if not needs_calibration(method):
        return None
    path = _path(trained, method, name)
    if path.with_name(f"{path.name}.json").is_file():
        calibration = Calibration.load(path)
    else:
        calibration = calibrate(trained, method, name, seed=seed, limit=limit, report=report)
    try:
        method.threshold(calibration)
    except ValueError as error:
        raise UsageError(f"--method {name}: {error}") from None
    return calibration


def calibrate(
    trained: Trained,
    method: Row,
    name: str,
    *,
    seed: int = 0,
    limit: int | None = None,
    truth: Truth = "synthetic",
    report: Callable[[str], None] = lambda line: None,
) -> Calibration:
    """Fits normalization and thresholds, and stores them in the run.

    Arguments:
        trained: the run
        method: what is calibrated
        name: of its row
        seed: of the methods' noise
        limit: most volumes to use of each part
        truth: lesions of the validation volumes that choose the validation threshold: synthetic
            ones of the validation family, or the labels of the cases
        report: receives progress lines

    Raises:
        UsageError: the run's data are not reachable, or too few for the method
    """
    part = "calibration" if trained.cases("calibration") else "validation"
    count = len(trained.cases(part)[:limit])
    if count == 0:
        raise UsageError(
            f"{trained.run}: its split has no healthy calibration or validation volumes to "
            f"calibrate '{name}' on; train with data.split.calibration > 0, or ask for a raw map "
            "with normalize=raw threshold=best."
        )
    report(f"calibrating {name} on {count} healthy volumes ({part} split)")
    try:
        healthy = _counted(trained.examples(part, limit=limit), count, report)
        calibration = fit(method, trained.model, healthy, seed=seed)
        if trained.cases("validation"):
            pairs = lesioned(trained, seed=seed, limit=limit, truth=truth)
            lesions = (pair.sick for pair in pairs)
            calibration = validate(calibration, method, trained.model, lesions, seed=seed)
        method.threshold(calibration)  # says now, not at the first volume, if it cannot be used
    except ValueError as error:
        raise UsageError(f"--method {name}: {error}") from None
    calibration.save(_path(trained, method, name))
    return calibration


def _counted(
    examples: Iterator[Example], count: int, report: Callable[[str], None]
) -> Iterator[Example]:
    """The examples, with a line at most every `PAUSE` seconds."""
    said = time.monotonic()
    for number, example in enumerate(examples):
        yield example
        if time.monotonic() - said > PAUSE:
            report(f"  {number + 1} of {count}")
            said = time.monotonic()


def _path(trained: Trained, method: Row, name: str) -> Path:
    stem = f"{trained.digest[:12]}-{method.fingerprint}"
    return trained.run / "calibration" / Path(name).stem / stem


def _atlas(trained: Trained) -> Atlas:
    path = trained.run / "calibration" / "atlas.safetensors"
    if path.is_file():
        return Atlas.load(path)
    try:
        atlas = Atlas.fit(e.x.cpu() for e in trained.examples("train"))
    except ValueError as error:
        raise UsageError(f"{trained.run}: {error}") from None
    atlas.save(path)
    return atlas
