"""The contract of volume scores: finite, higher for more abnormal, blind to the background."""

import math
from typing import Any

import torch

from volumediff.anomaly.score import Score
from volumediff.contracts.requirements import built, refused, require, untouched
from volumediff.contracts.scenes import INSIDE, POSTERIOR, SHAPE, context, models
from volumediff.randomness import normal

__all__ = ["check_score"]


def check_score(cls: type, **arguments: Any) -> None:
    """One number per volume, which rises with the map or with the errors of the runs."""
    score: Score = built(cls, arguments, {"fraction": 0.05}, {"classifier": POSTERIOR})
    a = normal((1, 1, *SHAPE), "contracts", "map").abs() * INSIDE
    errors = torch.tensor([0.4, 0.7])
    healthy = 0.3 + 0.1 * normal((6, 2), "contracts", "errors").abs()

    def scored(a: torch.Tensor, errors: torch.Tensor) -> float:
        return score(a, foreground=INSIDE, errors=errors, healthy=healthy)

    first = untouched({"the map": a, "the errors": errors}, lambda: scored(a, errors))
    require(isinstance(first, float) and math.isfinite(first), f"The score is {first!r}.")
    require(scored(a, errors) == first, "The same map gives another score.")
    more = scored(a + 0.5 * INSIDE, errors + 0.5)
    require(more > first, f"A more abnormal volume has the score {more:.3g} after {first:.3g}.")
    air = scored(torch.where(INSIDE, a, 9.0), errors)
    require(air == first, "The score depends on what is outside the foreground.")
    if score.calibrated:
        text = "It needs healthy volumes, and does not refuse to go without."
        refused(lambda: score(a, foreground=INSIDE, errors=errors), text, ValueError)
    one = context(next(models()))
    kept = score.evidence(one, torch.tensor(0.3))
    require(kept.ndim == 0 and kept.isfinite(), "A run is not remembered by one finite number.")
