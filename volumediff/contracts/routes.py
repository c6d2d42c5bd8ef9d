"""The contract of routes: pseudo-healthy volumes and maps of a volume, as it was declared."""

from typing import Any

import torch
from torch import Tensor

from volumediff.anomaly.editing.plain import Plain
from volumediff.anomaly.routes._base import Route
from volumediff.compatibility.chains import walks
from volumediff.contracts.requirements import built, equal, require, unmet, untouched
from volumediff.contracts.scenes import POSTERIOR, check_map_of, context, models
from volumediff.model import Model
from volumediff.samplers._base import Sampler
from volumediff.samplers.ancestral import Ancestral
from volumediff.samplers.ddim import DDIM

__all__ = ["check_route"]

SAMPLERS = (None, DDIM(3), Ancestral(3))
USUAL = {"levels": [0.3, 0.6], "level": 0.5, "count": 2, "passes": 2, "box_mm": 12.0}


def check_route(cls: type, **arguments: Any) -> None:
    """Finite volumes of the right size, lawful maps, and noise exactly where it was declared."""
    route: Route = built(cls, arguments, USUAL, {"classifier": POSTERIOR})
    model, sampler = _model(route), _sampler(route)
    for level in route.noise_levels():
        t = level.time(model.kernel.schedule)
        require(0 < t <= 1, f"A noise level is the time {t}, outside of (0, 1].")
    volumes, maps = _run(route, model, sampler, key=1)
    require(volumes or maps, "It gives neither a volume nor a map.")
    require(volumes or not route.own_map, "It declares own_map, but yields no volume.")
    require(maps or route.own_map, "It says that it leaves maps in the context, and leaves none.")
    again, _ = _run(route, model, sampler, key=1)
    for a, b in zip(volumes, again, strict=True):
        equal(a, b, "The same context gives another volume.")
    other, others = _run(route, model, sampler, key=2)
    moved = [*zip(volumes, other, strict=True), *zip(maps, others, strict=True)]
    alike = all(torch.equal(a, b) for a, b in moved)
    require(
        route.stochastic or alike,
        "It says that no noise enters, and depends on the key.",
    )
    require(
        not route.stochastic or not alike,
        "It says that noise enters, and no key matters.",
    )


def _run(
    route: Route, model: Model, sampler: Sampler | None, *, key: int
) -> tuple[list[Tensor], list[Tensor]]:
    one = context(model, key=key)
    with torch.no_grad():
        volumes = untouched(
            {"the volume": one.x},
            lambda: list(route(one, None, editing=Plain(), sampler=sampler)),
        )
    for volume in volumes:
        require(volume.shape == one.x.shape, f"A volume has shape {tuple(volume.shape)}.")
        require(volume.isfinite().all(), "A pseudo-healthy volume is not finite.")
    for a in one.maps:
        check_map_of(a, "A map that the route leaves in the context")
    return volumes, list(one.maps)


def _model(route: Route) -> Model:
    for model in models():
        if walks(route, model.kernel.path) and unmet(route, model) is None:
            return model
    raise AssertionError("It refuses every kind of model, each with a problem.")


def _sampler(route: Route) -> Sampler | None:
    reasons = []
    for sampler in SAMPLERS:
        try:
            route.check(sampler)
        except ValueError as error:
            reasons.append(str(error))
            continue
        return sampler
    raise AssertionError(f"It refuses every sampler, and none: {reasons[-1]}")
