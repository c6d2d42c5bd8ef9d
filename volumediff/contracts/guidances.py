"""The contract of guidance: a denoiser in, a denoiser out."""

from typing import Any

import torch
from torch import Tensor

from volumediff.condition import Condition
from volumediff.contracts.closed_form import class_posterior, gaussian
from volumediff.contracts.requirements import built, equal, require
from volumediff.guidance._base import Guidance
from volumediff.kernels._base import Prediction
from volumediff.schedules.cosine import Cosine

__all__ = ["check_guidance"]

SCHEDULE = Cosine()
MEANS, STD = (-0.4, 0.6), 0.5


def _denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
    each = [gaussian(SCHEDULE, m, STD)(z_t, t, condition) for m in (*MEANS, 0.1)]
    chosen = condition.label[:, None, None, None, None]

    def pick(name: str) -> Tensor:
        return sum(getattr(p, name) * (chosen == i) for i, p in enumerate(each))

    return Prediction(pick("x0"), pick("eps"), pick("v"))


def check_guidance(cls: type, **arguments: Any) -> None:
    """Predictions stay predictions of the state, samples stay apart, conditions pass through."""
    objects = {"classes": 2, "classifier": class_posterior(SCHEDULE, MEANS, STD)}
    guidance: Guidance = built(cls, arguments, {"scale": 2.0}, objects)
    seen: list[Condition] = []

    def denoise(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        seen.append(condition)
        return _denoise(z_t, t, condition)

    guided = guidance(denoise)
    z = torch.tensor([0.3, -0.2, 1.5], dtype=torch.float64)[:, None, None, None, None]
    z = z * torch.linspace(-1, 1, 5, dtype=torch.float64)
    t = torch.tensor([0.3, 0.6, 0.999], dtype=torch.float64)
    told = Condition(label=torch.tensor([0, 0, 0]), scalars=torch.ones(3, 2))
    found = guided(z, t, told)
    alpha, sigma = (x[:, None, None, None, None] for x in SCHEDULE(t))
    text = "x0, eps and v of the guided prediction are not of one state:"
    equal(alpha * found.x0 + sigma * found.eps, z, f"{text} α x0 + σ eps is not z_t.", atol=1e-9)
    equal(alpha * found.eps - sigma * found.x0, found.v, f"{text} v differs.", atol=1e-9)
    require(len(seen) > 0, "The denoiser is never evaluated.")
    require(
        all(c.scalars is not None and torch.equal(c.scalars, told.scalars) for c in seen),
        "Other conditions than the class do not reach the denoiser.",
    )
    require(torch.equal(told.label, torch.tensor([0, 0, 0])), "It changes the caller's label.")
    one = guided(z[1:2], t[1:2], told.map(lambda v: v[1:2]))
    equal(one.x0, found.x0[1:2], "A sample's prediction depends on its batch.", atol=1e-9)
    single = guided(z.float(), t, told).x0
    require(single.dtype == torch.float32, "Predictions do not keep the dtype of the state.")
