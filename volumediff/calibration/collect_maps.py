"""Maps of healthy volumes and of lesions, collected into the calibration of a method.

To be honest about new volumes, the map of calibration volume i is normalized with the statistics
of the others: in the statistics that it helped to make, a volume looks more normal than it is.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.methods._base import FIRST_THRESHOLD, Learned, Method
from volumediff.metrics.calibration_error import fit as fit_probability
from volumediff.metrics.detection import best_dice, histogram, threshold_at_fpr, total
from volumediff.metrics.superlevel import UpperPart, upper_part
from volumediff.randomness import key as key_of

__all__ = ["fit", "informed", "recalibrate", "validate"]


def fit(method: Method, model: Learned, volumes: Iterable[Example], *, seed: int) -> Calibration:
    """Calibrates a method on healthy volumes; volume i draws its noise from (seed, i).

    Raises:
        ValueError: no volumes, or too few for the method's normalization
    """
    row, learnt = method, {}
    if method.first_threshold is not None:
        volumes = list(volumes)
        learnt = informed(method, model, volumes, seed=seed)
        method = method.with_first_threshold(learnt)
    residuals = [
        method.residual(model, e, key=key_of(seed, "calibration", i))
        for i, e in enumerate(volumes)
    ]
    if len(residuals) < (3 if method.normalize.fitted or method.score.calibrated else 1):
        raise ValueError(
            f"calibration: expected at least 3 healthy volumes, got {len(residuals)}; "
            "make the calibration split larger."
        )
    ours = [r.errors for r in residuals if r.errors is not None]
    errors = torch.stack(ours).double().cpu() if ours else None
    histograms, scores, upper = [], [], []
    for i, r in enumerate(residuals):
        others = residuals[:i] + residuals[i + 1 :] if method.normalize.fitted else [r]
        a = method.finish(r, method.normalize.fit(others))
        histograms.append(histogram(a, foreground=r.foreground))
        upper.append(upper_part(a, foreground=r.foreground, spacing_mm=r.spacing_mm))
        rest = None if errors is None else torch.cat([errors[:i], errors[i + 1 :]])
        scores.append(method.score(a, foreground=r.foreground, errors=r.errors, healthy=rest))
    return Calibration(
        row.fingerprint,
        {**method.normalize.fit(residuals), **learnt},
        total(histograms),
        tuple(scores),
        each=tuple(histograms),
        errors=errors,
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
    residuals = [
        method.residual(model, e, key=key_of(seed, "site", i)) for i, e in enumerate(volumes)
    ]
    least = 3 if method.score.calibrated else 1
    if len(residuals) < least:
        raise ValueError(
            f"calibration: expected at least {least} healthy volumes of the site, got "
            f"{len(residuals)}; add volumes."
        )
    ours = [r.errors for r in residuals if r.errors is not None]
    errors = torch.stack(ours).double().cpu() if ours else None
    histograms, scores, upper = [], [], []
    for i, r in enumerate(residuals):
        a = method.finish(r, calibration.statistics)
        histograms.append(histogram(a, foreground=r.foreground))
        upper.append(upper_part(a, foreground=r.foreground, spacing_mm=r.spacing_mm))
        rest = None if errors is None else torch.cat([errors[:i], errors[i + 1 :]])
        scores.append(method.score(a, foreground=r.foreground, errors=r.errors, healthy=rest))
    return Calibration(
        calibration.fingerprint,
        calibration.statistics,
        total(histograms),
        tuple(scores),
        each=tuple(histograms),
        errors=errors,
        **_findings(method, upper),
    )


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
