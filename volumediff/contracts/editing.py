"""The contracts of editing strategies and of region selectors, on a volume with a first pass."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.selectors import Selector
from volumediff.contracts.requirements import built, equal, refused, require, unmet, untouched
from volumediff.contracts.scenes import SHAPE, check_map_of, context, models
from volumediff.kernels._base import Prediction
from volumediff.model import Model
from volumediff.samplers.ancestral import Ancestral

__all__ = ["check_editing", "check_selector"]

START = 0.5


def check_editing(cls: type, **arguments: Any) -> None:
    """A chain that it edits stays a chain, and its map is a map."""
    usual = {"levels": [0.3], "dilate_mm": 2.0, "resampling": 2}
    editing: Editing = built(cls, arguments, usual)
    q = editing.healthy_quantile
    require(q is None or 0 < q < 1, f"healthy_quantile is {q}, no share in (0, 1).")
    if q is not None:
        editing = editing.with_first_threshold(0.2)
        waits = editing.healthy_quantile is not None
        require(not waits, "with_first_threshold leaves it waiting for a quantile.")
    model = _model(editing)
    first, a = _walked(editing, context(model))
    again, b = _walked(editing, context(model))
    equal(first, again, "The same context gives another volume.")
    equal(a, b, "The same context gives another map.")


def _model(editing: Editing) -> Model:
    for model in models():
        if model.kernel.path != "cold" and unmet(editing, model) is None:
            return model
    raise AssertionError("It refuses every kind of model, each with a problem.")


@torch.no_grad()
def _walked(editing: Editing, one: MethodContext) -> tuple[Tensor, Tensor]:
    sampler = Ancestral(4)
    start = untouched({"the volume": one.x}, lambda: editing.start(one))
    require(start.shape == one.x.shape and start.isfinite().all(), "start gives no volume.")
    times = editing.times(sampler.times(one.schedule, start=START))
    ends = (float(times[0]), float(times[-1]))
    require(
        ends == (START, 0.0), f"The chain goes from {ends[0]} to {ends[1]}, not from {START} to 0."
    )
    denoise, condition = editing.asked(one)
    z = one.noised(one.encode(start), START)
    said = denoise(z, one.times(START), condition)
    require(isinstance(said, Prediction), "The denoiser does not return a Prediction.")
    z = sampler.sample(
        denoise,
        one.model.kernel,
        z,
        times,
        condition=condition,
        noise=one.noise,
        on_x0=editing.hook(one),
    )
    healthy = editing.finish(one, one.decode(z))
    require(healthy.shape == one.x.shape, f"finish gives the shape {tuple(healthy.shape)}.")
    require(healthy.isfinite().all(), "The edited volume is not finite.")
    require(bool(one.maps) or editing.own_map, "It collects no maps, and its own is not taken.")
    weighed = editing.weigh(one, one.compare(healthy))
    for a in (weighed, *one.maps):
        check_map_of(a, "A map of the strategy")
    return healthy, weighed


def check_selector(cls: type, **arguments: Any) -> None:
    """A mask of ones and zeros, not empty, of what it says that it looks at."""
    where: Selector = built(cls, arguments)
    one = context(next(models()))
    given = {"the volume": one.x, "the first map": one.prior_map, "the region": one.region}
    m = untouched(given, lambda: where(one))
    require(tuple(m.shape) == (1, 1, *SHAPE), f"The region has shape {tuple(m.shape)}.")
    require(m.dtype == one.x.dtype, "The region is not in the dtype of the volume.")
    require(set(m.unique().tolist()) <= {0.0, 1.0}, "The region has other values than 0 and 1.")
    require(m.any() and not m.all(), "The region is empty, or everything.")
    equal(where(context(next(models()))), m, "The same context gives another region.")
    if where.takes_region:
        text = "It needs a region from the caller, and a volume without one is not refused."
        refused(lambda: where(replace(one, region=None)), text, ValueError)
    else:
        equal(where(replace(one, region=None)), m, "It looks at the caller's region, undeclared.")
    if not where.two_pass:
        equal(where(replace(one, prior_map=None)), m, "It looks at a first map, undeclared.")
