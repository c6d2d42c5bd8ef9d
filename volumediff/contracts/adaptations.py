"""The contract of test-time adaptation: the network changes for one volume, and changes back."""

from typing import Any

import torch

from volumediff.anomaly.adaptation import Adaptation
from volumediff.contracts.requirements import built, refused, require, unmet
from volumediff.contracts.scenes import INSIDE, SHAPE, example, network_model

__all__ = ["check_adaptation"]


def check_adaptation(cls: type, **arguments: Any) -> None:
    """Weights differ inside of the context, by the key alone, and have their old bits after it."""
    usual = {"steps": 2, "draws": 1, "quantile": 0.9, "dilate_mm": 1.0}
    adaptation: Adaptation = built(cls, arguments, usual)
    model = network_model()
    require(unmet(adaptation, model) is None, "It refuses a network with normalisations.")
    one = example()
    a = one.x.abs() * INSIDE
    suspected = adaptation.suspected(a, one)
    require(suspected.dtype == torch.bool, "What is suspected must be a mask.")
    require(tuple(suspected.shape) == (1, 1, *SHAPE), "What is suspected is of another size.")

    def state() -> list[tuple[torch.Tensor, bool]]:
        return [(p.detach().clone(), p.requires_grad) for p in model.network.parameters()]

    def same(a: list, b: list) -> bool:
        return all(torch.equal(p, q) and f == g for (p, f), (q, g) in zip(a, b, strict=True))

    before, inside = state(), []
    for key in (1, 1, 2):
        with adaptation.adapted(model, one, suspected=suspected, key=key):
            inside.append(state())
        require(same(state(), before), "Weights or their flags differ after the adaptation.")
    require(not same(inside[0], before), "Nothing is adapted.")
    require(same(inside[0], inside[1]), "The same key gives other weights.")
    try:
        with adaptation.adapted(model, one, suspected=suspected, key=1):
            raise KeyError("in the middle")
    except KeyError:
        require(same(state(), before), "Weights stay adapted when something fails meanwhile.")

    def hopeless() -> None:
        with adaptation.adapted(model, one, suspected=INSIDE, key=1):
            pass

    refused(hopeless, "A volume that is suspected everywhere must be refused.", ValueError)
