"""Calibration of a method on a run's own healthy volumes, stored in the run.

RUN/calibration/<method>/<weights>-<method's fingerprint>.{safetensors,json} holds the residual
normalization and the thresholds, RUN/calibration/atlas.safetensors the healthy atlas. Both names
say what they belong to: after more training, or with another setting, they are fitted anew.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from volumediff.anomaly.baselines import Atlas, AtlasZ
from volumediff.anomaly.calibrate import fit, validate
from volumediff.anomaly.calibration import Calibration, Example
from volumediff.anomaly.rows import Row, load_row
from volumediff.data.anomalies import KINDS, VALIDATION, Family, insert
from volumediff.errors import UsageError
from volumediff.inference.trained import Trained
from volumediff.randomness import key

__all__ = [
    "calibrate",
    "calibration_for",
    "calibration_path",
    "counted",
    "load_method",
    "needs_calibration",
]

Truth = Literal["synthetic", "label"]
# The largest lesion of the family is 1 % of a brain; in a small organ it must not be all of it.
LARGEST_SHARE = 0.1
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
    path = calibration_path(trained, method, name)
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
        healthy = counted(trained.examples(part, limit=limit), count, report)
        calibration = fit(method, trained.model, healthy, seed=seed)
        if trained.cases("validation"):
            lesions = _with_truth(trained, seed=seed, limit=limit, truth=truth)
            calibration = validate(calibration, method, trained.model, lesions, seed=seed)
        method.threshold(calibration)  # says now, not at the first volume, if it cannot be used
    except ValueError as error:
        raise UsageError(f"--method {name}: {error}") from None
    calibration.save(calibration_path(trained, method, name))
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


def calibration_path(trained: Trained, method: Row, name: str) -> Path:
    """Where the calibration of a method on a run's own volumes lies, without the endings."""
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


def _with_truth(
    trained: Trained, *, seed: int, limit: int | None, truth: Truth
) -> Iterator[Example]:
    """Validation volumes with lesions; never those of the test family."""
    cases = trained.cases("validation")[:limit]
    for i, case in enumerate(cases):
        example = trained.example(case)
        if truth == "label":
            if example.truth is None:
                raise UsageError(
                    f"{trained.run}: case {case.id} has no label; use synthetic lesions."
                )
            yield example
            continue
        if example.lesioned:
            continue  # its own lesion would count as a false positive
        donor = trained.example(cases[(i + 1) % len(cases)]).x[0].cpu()
        same = donor.shape == example.x[0].shape
        kinds = [kind for kind in KINDS if same or kind != "foreign_patch"]
        x, mask = insert(
            example.x[0].cpu(),
            example.foreground[0].cpu(),
            kind=kinds[i % len(kinds)],
            key=key(seed, "calibration lesion", i),
            spacing_mm=example.spacing_mm,
            family=_fitting(example),
            donor=donor if same else None,
        )
        yield replace(example, x=x[None].to(trained.device), truth=mask[None].to(trained.device))


def _fitting(example: Example) -> Family:
    """The validation family, with lesions of at most a tenth of a small foreground."""
    d, h, w = example.spacing_mm
    most = LARGEST_SHARE * int(example.foreground.sum()) * d * h * w / 1000
    low, high = VALIDATION.volume_ml
    return replace(VALIDATION, volume_ml=(min(low, most), min(high, most)))
