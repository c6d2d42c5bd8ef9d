"""The contracts of fusions: tails of one map, and combinations of several."""

from typing import Any

import torch
from torch import Tensor

from volumediff.anomaly.combinations import Combination
from volumediff.anomaly.tails import Tail
from volumediff.contracts.requirements import built, equal, require
from volumediff.contracts.scenes import INSIDE, LESION, SPACING, example
from volumediff.metrics.detection import histogram, total
from volumediff.randomness import normal

__all__ = ["check_combination", "check_tail"]


def _map(i: int, lesion: float = 0.0) -> Tensor:
    return example(i, lesion=lesion).x.abs() * INSIDE


def check_tail(cls: type, **arguments: Any) -> None:
    """Surprises from 0 on, that rise with the map and that a lesion stands out of."""
    tail: Tail = built(cls, arguments)
    healthy = total(histogram(_map(i), foreground=INSIDE) for i in range(8))
    statistics = tail.fit(healthy)
    require(tail.fitted == bool(statistics), "fitted and the statistics disagree.")
    a = _map(20, lesion=0.6)
    values = a[INSIDE]
    f = tail.surprise(values, statistics)
    require(f.shape == values.shape and f.dtype == torch.float64, "Not float64 for every value.")
    require(f.isfinite().all() and float(f.min()) >= 0, "A surprise is negative or not finite.")
    order = values.argsort()
    require(bool((f[order].diff() >= 0).all()), "A higher value is less surprising.")
    constant = tail.surprise(torch.ones(50), statistics)
    require(
        float(constant.max()) == float(constant.min()), "Equal values are not equally surprising."
    )
    wide = tail(a, foreground=INSIDE, spacing_mm=SPACING, statistics=statistics)
    require(wide.shape == values.shape, "There must be one value per voxel of the foreground.")
    inside = LESION[INSIDE]
    require(wide[inside].mean() > wide[~inside].mean(), "A lesion does not stand out.")


def check_combination(cls: type, **arguments: Any) -> None:
    """A map from 0 on that rises with every method, and shares that are not negative."""
    rule: Combination = built(cls, arguments)
    truth = torch.arange(3000) % 10 == 0
    noise = normal((3, 3000), "contracts", "fusion").abs().double()
    f = noise + truth * torch.tensor([[2.0], [1.0], [0.5]])
    statistics = rule.fit([(f[:, :1500], truth[:1500]), (f[:, 1500:], truth[1500:])])
    require(rule.learned == bool(statistics), "learned and the statistics disagree.")
    a = rule(f, statistics)
    require(a.shape == (3000,) and a.dtype == torch.float64, "Not float64 for every voxel.")
    require(a.isfinite().all() and float(a.min()) >= 0, "The map is negative or not finite.")
    flat = rule(torch.zeros(3, 4), statistics)
    require(float(flat.max()) == float(flat.min()), "Equal voxels differ.")
    for m in range(3):
        more = f.clone()
        more[m] += 0.3
        require(
            bool((rule(more, statistics) >= a - 1e-9).all()),
            f"A higher surprise of method {m} gives a lower map.",
        )
    parts = rule.contributions(f, statistics)
    require(parts.shape == f.shape, "There must be a contribution of every method.")
    require(parts.isfinite().all() and float(parts.min()) >= 0, "A contribution is negative.")
    require(a[truth].mean() > a[~truth].mean(), "Lesions do not stand out.")
    place = torch.randperm(3000, generator=torch.Generator().manual_seed(0))
    equal(rule(f[:, place], statistics), a[place], "Voxels depend on each other.", atol=1e-12)
