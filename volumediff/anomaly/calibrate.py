"""Calibrating a method: its maps of healthy volumes, and of validation volumes with truth.

To be honest about new volumes, the map of calibration volume i is normalized with the statistics
of the others: in the statistics that it helped to make, a volume looks more normal than it is.
"""

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from volumediff.anomaly.calibration import Calibration, Example
from volumediff.anomaly.localizer import Learned, Method
from volumediff.metrics.calibration import fit as fit_probability
from volumediff.metrics.detection import best_dice, histogram, total
from volumediff.randomness import key as key_of

__all__ = ["fit", "validate"]


def fit(method: Method, model: Learned, volumes: Iterable[Example], *, seed: int) -> Calibration:
    """Calibrates a method on healthy volumes; volume i draws its noise from (seed, i).

    Raises:
        ValueError: no volumes, or too few for the method's normalization
    """
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
    histograms, scores = [], []
    for i, r in enumerate(residuals):
        others = residuals[:i] + residuals[i + 1 :] if method.normalize.fitted else [r]
        a = method.finish(r, method.normalize.fit(others))
        histograms.append(histogram(a, foreground=r.foreground))
        rest = None if errors is None else torch.cat([errors[:i], errors[i + 1 :]])
        scores.append(method.score(a, foreground=r.foreground, errors=r.errors, healthy=rest))
    statistics = method.normalize.fit(residuals)
    return Calibration(
        method.fingerprint,
        statistics,
        total(histograms),
        tuple(scores),
        each=tuple(histograms),
        errors=errors,
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
    histograms = []
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
