"""The contract of ensembles: a merge of equal maps is the map, and lies between its members."""

from typing import Any

import torch

from volumediff.anomaly.ensemble import Ensemble
from volumediff.contracts.requirements import built, equal, require
from volumediff.randomness import normal

__all__ = ["check_ensemble"]


def check_ensemble(cls: type, **arguments: Any) -> None:
    """Members that exist, and a generalised mean of their maps."""
    ensemble: Ensemble = built(cls, arguments, {"levels": [0.2, 0.5], "seeds": 2})
    members = ensemble.members()
    require(len(members) > 0, "There are no members.")
    require(len(set(members)) == len(members), "Two members are the same run.")
    runs = [0.1 + normal((1, 1, 4, 5, 3), "contracts", i).abs() for i in range(3)]

    def merged(*maps: torch.Tensor) -> torch.Tensor:
        return ensemble.inverse(sum(ensemble.forward(a) for a in maps) / len(maps))

    equal(merged(runs[0], runs[0]), runs[0], "Equal maps are not merged to themselves.", rtol=1e-4)
    a = merged(*runs)
    stack = torch.stack(runs)
    require(
        bool((a >= stack.amin(0) * 0.999).all() and (a <= stack.amax(0) * 1.001).all()),
        "The merged map does not lie between the maps.",
    )
    equal(merged(*runs[::-1]), a, "The merge depends on the order of the runs.", rtol=1e-4)
    higher = merged(runs[0] + 0.5, *runs[1:])
    require(bool((higher > a).all()), "A more abnormal run does not raise the merged map.")
    zero = torch.zeros_like(a)
    equal(merged(zero, zero), zero, "Maps of zeros are not merged to zero.")
