"""Maps of healthy volumes and of lesions, collected into the calibration of a method.

To be honest about new volumes, the map of calibration volume i is normalized with the statistics
of the others: in the statistics that it helped to make, a volume looks more normal than it is.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import FIRST_THRESHOLD, Learned, Method
from volumediff.anomaly.normalization import Residual
from volumediff.calibration.spool import Spool
from volumediff.metrics.calibration_error import fit as fit_probability
from volumediff.metrics.detection import best_dice, histogram, threshold_at_fpr, total
from volumediff.metrics.superlevel import UpperPart, upper_part
from volumediff.randomness import key as key_of

__all__ = ["fit", "informed", "least_volumes", "recalibrate", "validate"]

FITTED = 3  # fewest healthy volumes for statistics that leave one of them out at a time


def least_volumes(method: Method) -> int:
    """Fewest healthy volumes that the calibration of a method takes; 0 where it takes none."""
    return max(_fitted_on(method), method.threshold.least_volumes)


def _fitted_on(method: Method) -> int:
    return FITTED if method.needs_healthy or method.score.calibrated else 0


def fit(
    method: Method,
    model: Learned,
    volumes: Iterable[Example],
    *,
    seed: int,
    lesions: Iterable[Example] = (),
) -> Calibration:
    """Calibrates a method on healthy volumes; volume i draws its noise from (seed, i).

    One volume is in memory at a time; the maps of the others wait on the disk.

    Arguments:
        method: what is calibrated
        model: that it works with
        volumes: healthy ones
        seed: of the method's noise
        lesions: validation volumes with truth, for methods that learn from some

    Raises:
        ValueError: no volumes, or too few for the method's normalization
    """
    row, learnt = method, {}
    if method.first_threshold is not None:
        volumes = list(volumes)
        learnt = informed(method, model, volumes, seed=seed)
        method = method.with_first_threshold(learnt)
    with Spool() as residuals:
        keys = (key_of(seed, "calibration", i) for i in count())
        errors = _collect(residuals, method, model, zip(volumes, keys, strict=False))
        least = max(_fitted_on(method), 1)
        if len(residuals) < least:
            raise ValueError(
                f"calibration: expected at least {least} healthy volumes, got {len(residuals)}; "
                "add healthy volumes to the calibration of the run."
            )
        sick = _with_truth(method, model, lesions, seed=seed) if method.needs_lesions else ()
        statistics = method.statistics_of(residuals, sick)
        finished = method.held_out(residuals, statistics)
        made = _calibration(method, {**statistics, **learnt}, residuals, finished, errors)
    return replace(made, fingerprint=row.fingerprint)


def _collect(
    residuals: Spool, method: Method, model: Learned, volumes: Iterable[tuple[Example, int]]
) -> list[Tensor]:
    """Appends the map of every volume, drawn with its key; the errors of their runs."""
    errors = []
    for example, key in volumes:
        residual = method.residual(model, example, key=key)
        errors += [] if residual.errors is None else [residual.errors]
        residuals.append(residual)
    return errors


def _with_truth(
    method: Method, model: Learned, volumes: Iterable[Example], *, seed: int
) -> Iterator[tuple[Residual, Tensor]]:
    """Maps of validation volumes with lesions, and those."""
    for i, e in enumerate(volumes):
        if e.truth is None:
            raise ValueError(f"calibration: validation volume {i} has no truth; give its mask.")
        yield method.residual(model, e, key=key_of(seed, "validation", i)), e.truth


def _calibration(
    method: Method,
    statistics: Mapping[str, Tensor],
    residuals: Sequence[Residual],
    finished: Iterable[Tensor],
    errors: Sequence[Tensor],
) -> Calibration:
    """What the finished maps of healthy volumes say."""
    runs = torch.stack(list(errors)).double().cpu() if errors else None
    histograms, scores, upper = [], [], []
    for i, a in enumerate(finished):
        r = residuals[i]
        histograms.append(histogram(a, foreground=r.foreground))
        upper.append(upper_part(a, foreground=r.foreground, spacing_mm=r.spacing_mm))
        rest = None if runs is None else torch.cat([runs[:i], runs[i + 1 :]])
        scores.append(method.score(a, foreground=r.foreground, errors=r.errors, healthy=rest))
    return Calibration(
        method.fingerprint,
        statistics,
        total(histograms),
        tuple(scores),
        each=tuple(histograms),
        errors=runs,
        **_findings(method, upper),
    )


def informed(
    method: Method, model: Learned, volumes: Iterable[Example], *, seed: int
) -> dict[str, Tensor]:
    """What a method waits for: the quantile of its first pass's maps of healthy volumes, pooled
    over their foreground; nothing for a method that waits for nothing.

    Raises:
        ValueError: no volumes
    """
    if method.first_threshold is None:
        return {}
    first, q = method.first_threshold
    histograms = []
    for i, e in enumerate(volumes):
        with torch.no_grad():
            a = first.find(model, e, key=key_of(key_of(seed, "calibration", i), "first")).map
        histograms.append(histogram(a, foreground=e.foreground))
    if not histograms:
        raise ValueError("calibration: expected healthy volumes, got none; make the split larger.")
    value = threshold_at_fpr(total(histograms), 1 - q)
    return {FIRST_THRESHOLD: torch.tensor(value, dtype=torch.float64)}


def recalibrate(
    calibration: Calibration,
    method: Method,
    model: Learned,
    volumes: Iterable[Example],
    *,
    seed: int,
) -> Calibration:
    """The same normalization, with healthy maps and scores of volumes of another site.

    Few volumes move a threshold, but do not fit a map of healthy residuals, so the statistics
    stay. What was chosen on lesions of the first site does not: validation threshold and
    probability are gone.

    Raises:
        ValueError: no volumes, or too few for the method's score
    """
    with Spool() as residuals:
        keys = (key_of(seed, "site", i) for i in count())
        errors = _collect(residuals, method, model, zip(volumes, keys, strict=False))
        least = FITTED if method.score.calibrated else 1
        if len(residuals) < least:
            raise ValueError(
                f"calibration: expected at least {least} healthy volumes of the site, got "
                f"{len(residuals)}; add volumes."
            )
        statistics = calibration.statistics
        finished = (method.finish(r, statistics) for r in residuals)
        made = _calibration(method, statistics, residuals, finished, errors)
    return replace(made, fingerprint=calibration.fingerprint)


def validate(
    calibration: Calibration,
    method: Method,
    model: Learned,
    volumes: Iterable[Example],
    *,
    seed: int,
) -> Calibration:
    """Adds the threshold with the best Dice and the probability of a lesion by map value, both
    pooled over validation volumes with truth.

    Raises:
        ValueError: a volume has no truth, or none of them has a lesion
    """
    method, histograms = method.with_first_threshold(calibration.statistics), []
    for i, e in enumerate(volumes):
        if e.truth is None:
            raise ValueError(f"calibration: validation volume {i} has no truth; give its mask.")
        r = method.residual(model, e, key=key_of(seed, "validation", i))
        a = method.finish(r, calibration.statistics)
        histograms.append(histogram(a, e.truth, foreground=e.foreground))
    pooled = total(histograms)
    best = best_dice(pooled)
    if not np.isfinite(best.threshold):
        raise ValueError("calibration: expected validation volumes with lesions, got none.")
    return replace(
        calibration, validation_threshold=best.threshold, probability=fit_probability(pooled)
    )


def _findings(method: Method, upper: list[UpperPart]) -> dict[str, Any]:
    """What a calibration knows of the findings in healthy volumes."""
    return {
        "finding_ml": method.finding_ml,
        "upper": tuple(upper),
        "counts": tuple(part.steps(method.finding_ml) for part in upper),
    }
