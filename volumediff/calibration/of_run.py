"""Calibration of a method on a run's own healthy volumes, stored in the run.

RUN/calibration/<method>/<weights>-<method's fingerprint>.safetensors holds the residual
normalization and the thresholds. The name says what they belong to: after more training, with
another setting, or with more healthy volumes (`healthy`), they are fitted anew.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.method_files import read_method
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import Method
from volumediff.calibration.collect_maps import fit, least_volumes, validate
from volumediff.calibration.fits import Fits
from volumediff.calibration.healthy import healthy_pool
from volumediff.calibration.lesions import Truth, validation_pairs
from volumediff.calibration.promise import promises
from volumediff.errors import UsageError
from volumediff.runs.added_healthy import added_digest
from volumediff.runs.auxiliary_models import Borrowed
from volumediff.runs.trained import Trained
from volumediff.storage.locks import exclusive

__all__ = [
    "calibrate",
    "calibration_for",
    "calibration_path",
    "counted",
    "load_method",
    "needs_calibration",
]

PAUSE = 15.0  # seconds between two lines


def load_method(
    trained: Trained,
    name: str,
    overrides: Sequence[str] = (),
    *,
    runs: Mapping[str, Path | str | None] | None = None,
    borrowed: Borrowed | None = None,
    report: Callable[[str], None] = lambda line: None,
) -> Method:
    """The method of a name, with what it borrows from other runs and what it fitted on this one.

    Arguments:
        trained: the run
        name: of the method
        overrides: `component.argument=value` overrides
        runs: kind of auxiliary model, such as `classifier` -> folder of its run, for components
            that name none themselves
        borrowed: what was loaded of other runs already, in place of `runs`
        report: receives progress lines

    Raises:
        UsageError: no such method, one that does not suit the run, or that takes no such model
    """
    borrowed = borrowed or Borrowed(trained, runs or {})
    method = read_method(name, overrides=overrides)
    borrowed.check_asked(method, name)
    try:
        method = method.bind(borrowed)
        method.check(trained.model)
    except ValueError as error:
        raise UsageError(f"method '{name}': does not suit {trained.name}: {error}") from None
    with trained.config.memory.arithmetic():
        return method.bind(Fits(trained, report))


def needs_calibration(method: Method) -> bool:
    """Whether a method's map or mask needs healthy volumes first."""
    return least_volumes(method) > 0


def calibration_for(
    trained: Trained,
    method: Method,
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
    path = calibration_path(trained, method, name)
    with nullcontext() if path.is_file() else exclusive(path):
        if path.is_file():
            calibration = Calibration.load(path)
        else:
            calibration = calibrate(trained, method, name, seed=seed, limit=limit, report=report)
    try:
        method.threshold(calibration)
    except ValueError as error:
        raise UsageError(f"method '{name}': {error}") from None
    return calibration


def calibrate(
    trained: Trained,
    method: Method,
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
        name: of the method
        seed: of the methods' noise
        limit: most volumes to use of each part
        truth: lesions of the validation volumes that choose the validation threshold: synthetic
            ones of the validation family, or the labels of the cases
        report: receives progress lines

    Raises:
        UsageError: the run's data are not reachable, or too few for the method
    """
    if method.takes_region:
        raise UsageError(
            f"method '{name}': redraws a region that you give, and healthy volumes have none; "
            "use normalize=raw threshold=otsu, or another threshold of the map itself."
        )
    pool = healthy_pool(trained, limit=limit)
    count, least = len(pool), least_volumes(method)
    if count < max(least, 1):
        raise UsageError(
            f"method '{name}': expected at least {max(least, 1)} healthy calibration volumes, "
            f"got {count} ({trained.name}); add some to the run with calibrate and a folder of "
            "healthy volumes, or use a raw map with normalize=raw threshold=best."
        )
    report(f"calibrating {name} on {count} healthy volumes ({pool.where})")
    try:

        def lesions() -> Iterator[Example]:
            pairs = validation_pairs(trained, seed=seed, limit=limit, truth=truth)
            return (pair.sick for pair in pairs)

        healthy = counted(pool.examples(), count, report)
        with trained.config.memory.arithmetic():
            calibration = fit(method, trained.model, healthy, seed=seed, lesions=lesions())
            if trained.names_volumes and trained.cases("validation"):
                calibration = validate(calibration, method, trained.model, lesions(), seed=seed)
        method.threshold(calibration)  # says now, not at the first volume, if it cannot be used
    except ValueError as error:
        raise UsageError(f"method '{name}': {error}") from None
    calibration.save(calibration_path(trained, method, name))
    for line in promises(method.threshold, calibration):
        report(line)
    return calibration


def counted(
    examples: Iterator[Example], count: int, report: Callable[[str], None]
) -> Iterator[Example]:
    """The examples, with a line at most every `PAUSE` seconds."""
    said = time.monotonic()
    for number, example in enumerate(examples):
        yield example
        if time.monotonic() - said > PAUSE:
            report(f"  {number + 1} of {count}")
            said = time.monotonic()


def calibration_path(trained: Trained, method: Method, name: str) -> Path:
    """Where the calibration of a method on a run's own volumes, and those added, lies."""
    added = added_digest(trained.run)
    file = f"{trained.digest[:12]}-{method.fingerprint}{added and f'-{added}'}.safetensors"
    return trained.run / "calibration" / Path(name).stem / file
