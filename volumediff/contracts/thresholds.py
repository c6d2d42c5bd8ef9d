"""The contract of thresholds: needs are declared, and values follow what they depend on."""

import math
from typing import Any

import torch

from volumediff.anomaly.baselines import Smoothing
from volumediff.anomaly.calibration import Calibration
from volumediff.anomaly.threshold import OwnMap, Threshold
from volumediff.calibration.collect_maps import fit, validate
from volumediff.contracts.requirements import built, require
from volumediff.contracts.scenes import INSIDE, LESION, SHAPE, example
from volumediff.randomness import normal

__all__ = ["check_threshold"]

# arguments that say how much lies above, or below: the threshold falls, or rises, with them
FALLING, RISING = ("rate",), ("quantile", "probability")


def check_threshold(cls: type, **arguments: Any) -> None:
    """None, a number, or a number of the map itself, and monotone in its share."""
    threshold: Threshold = built(cls, arguments, {"value": 0.5})
    calibration = _calibration()
    value = threshold(calibration)
    if threshold.oracle:
        require(value is None, "It is an oracle, and gives a threshold without the truth.")
    if threshold.calibrated:
        require(threshold(None) is None, "It needs a calibration, and gives a number without one.")
        require(value is not None, "It needs a calibration, and gives nothing with one.")
    elif not isinstance(threshold, OwnMap) and not threshold.oracle:
        require(value is not None and value == threshold(None), "It looks at a calibration.")
    require(value is None or math.isfinite(value), f"The threshold is {value}.")
    require(threshold(calibration) == value, "The same calibration gives another threshold.")
    if isinstance(threshold, OwnMap):
        _own(threshold)
    _monotone(cls, arguments, calibration)


def _calibration() -> Calibration:
    method = Smoothing(sigma_mm=3.0)
    healthy = [example(i, lesion=0.0) for i in range(16)]  # enough for a rate of 0.2
    found = fit(method, None, healthy, seed=1)
    sick = [example(i) for i in range(20, 23)]
    return validate(found, method, None, sick, seed=1)


def _map() -> torch.Tensor:
    return (normal((1, 1, *SHAPE), "contracts", "map").abs() + 2 * LESION) * INSIDE


def _own(threshold: OwnMap) -> None:
    a = _map()
    value = threshold.of(a, foreground=INSIDE)
    inside = a[INSIDE]
    require(
        float(inside.min()) <= value <= float(inside.max()),
        "The threshold of a map is not between its values.",
    )
    scaled = threshold.of(2 * a + 1, foreground=INSIDE)
    require(
        abs(scaled - 2 * value - 1) < 1e-3 * (1 + abs(value)),
        "The threshold does not follow the unit of the map.",
    )
    air = threshold.of(torch.where(INSIDE, a, 9.0), foreground=INSIDE)
    require(air == value, "The threshold depends on what is outside the foreground.")


def _monotone(cls: type, arguments: dict[str, Any], calibration: Calibration) -> None:
    fields = getattr(cls, "__dataclass_fields__", {})
    for name, sign in (*((n, -1) for n in FALLING), *((n, 1) for n in RISING)):
        if name not in fields:
            continue
        values = []
        for share in (0.2, 0.5, 0.8):
            one = built(cls, {**arguments, name: share})
            own = isinstance(one, OwnMap)
            values.append(one.of(_map(), foreground=INSIDE) if own else one(calibration))
        rises = values if sign > 0 else values[::-1]
        require(
            rises[0] <= rises[1] <= rises[2] and rises[0] < rises[2],
            f"The threshold does not {'rise' if sign > 0 else 'fall'} with {name}: {values}.",
        )
