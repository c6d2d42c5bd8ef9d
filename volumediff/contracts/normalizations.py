"""The contract of normalizations: healthy maps have no deviation on average, lesions have."""

from dataclasses import replace
from typing import Any

import torch

from volumediff.anomaly.normalization import Normalization, Residual
from volumediff.contracts.requirements import built, equal, require
from volumediff.contracts.scenes import INSIDE, LESION, SPACING, example

__all__ = ["check_normalization"]


def _residual(i: int, lesion: float = 0.0) -> Residual:
    x = example(i, lesion=lesion).x
    return Residual((0.1 + x.abs()) * INSIDE, x, INSIDE, SPACING)


def check_normalization(cls: type, **arguments: Any) -> None:
    """Statistics of healthy residuals, and maps in units of them."""
    rule: Normalization = built(cls, arguments, {"bins": 4})
    healthy = [rule.prepare(_residual(i)) for i in range(8)]
    statistics = rule.fit(healthy)
    require(rule.fitted == bool(statistics), "fitted and the statistics disagree.")
    for name, value in statistics.items():
        require(value.isfinite().all(), f"The statistic {name} is not finite.")
    back = rule.fit(healthy[::-1])
    for name, value in statistics.items():
        text = f"The statistic {name} depends on the order of the volumes."
        equal(back[name], value, text, atol=1e-4, rtol=1e-3)
    sick = rule.prepare(_residual(20, lesion=0.6))
    z = rule(sick, statistics)
    require(z.shape == sick.map.shape and z.isfinite().all(), "The map is not finite.")
    require(not bool(z[~INSIDE].any()), "The map is not zero outside the foreground.")
    equal(rule(sick, statistics), z, "The same residual gives another map.")
    if rule.fitted:
        mean = torch.stack([rule(r, statistics)[INSIDE] for r in healthy]).mean()
        require(
            abs(float(mean)) < 0.5,
            f"Healthy volumes deviate by {float(mean):.3g} on average, not by 0.",
        )
    lesion, rest = float(z[LESION].mean()), float(z[INSIDE & ~LESION].mean())
    require(lesion > rest, "A lesion does not stand out of the normalized map.")
    more = rule(replace(sick, map=sick.map + 0.2 * INSIDE), statistics)
    if rule.recentred:
        return
    require(bool((more >= z)[INSIDE].all()), "A more abnormal map is less abnormal normalized.")
