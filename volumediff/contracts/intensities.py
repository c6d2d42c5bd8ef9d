"""The contract of intensity rules: to [-1, 1] in the foreground and back, in the same order."""

from typing import Any

import numpy as np

from volumediff.contracts.requirements import built, require
from volumediff.data.intensity import Intensity, landmarks_of
from volumediff.randomness import normal

__all__ = ["check_intensity"]

BACKGROUND = -1.0


def check_intensity(cls: type, **arguments: Any) -> None:
    """Range, background, order and inverse, for noise, a constant and an empty volume."""
    x = (40 + 80 * normal((12, 10, 8), "contracts", "x")).numpy()
    mask = np.ones(x.shape, bool)
    mask[:2] = False
    knots = landmarks_of([tuple(np.linspace(-1, 1, 11).tolist())])
    rule: Intensity = built(cls, arguments, {"landmarks": [list(knots)]})
    limits = rule.limits(x, mask)
    before = x.copy()
    y = rule.apply(x, mask, limits=limits)
    require(np.array_equal(x, before), "It writes into the volume, which is the caller's.")
    require(y.dtype == np.float32 and y.shape == x.shape, "Expected float32 of the same shape.")
    require(np.abs(y).max() <= 1, f"Intensities reach {np.abs(y).max():.3g}, beyond [-1, 1].")
    require(bool((y[:2] == BACKGROUND).all()), "The background is not -1.")
    order = np.argsort(x[mask], kind="stable")
    require(bool((np.diff(y[mask][order]) >= 0).all()), "It changes the order of intensities.")
    kept = mask & (np.abs(y) < 1)
    require(kept.mean() > 0.4, f"Only {kept.mean():.0%} of the foreground are within the limits.")
    back = rule.invert(y, limits=limits)
    error = float(np.abs(back[kept] - x[kept]).max())
    require(error < 1e-2, f"invert does not give the intensities back (off by {error:.3g}).")
    for flat, where in ((x * 0, mask), (x, mask & False)):
        made = rule.apply(flat, where, limits=rule.limits(flat, where))
        require(np.isfinite(made).all(), "A constant or empty foreground gives infinite values.")
    found = rule.mask(x)
    require(found.dtype == np.bool_ and found.shape == x.shape, "mask gives no mask.")
