r"""Test-time adaptation: the network is fitted to one volume, outside of what looks abnormal.

A volume of another scanner is unusual everywhere, and its lesions drown in that. A few steps on
the model's own denoising loss make the volume usual again,

.. math:: \min_θ\; E_{t, ε} \big\| (1 - S)\, (F_θ(z_t, t) - \text{target}) \big\|^2,

over few parameters θ, and without the suspected region S: what is fitted to a lesion restores it,
and it is gone from the map. S is where a first map is highest, and what is near.

References:
    Sun et al. (2020), Test-Time Training with Self-Supervision, arXiv:1909.13231
    Wang et al. (2021), Tent: Fully Test-Time Adaptation, arXiv:2006.10726 (which parameters)
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from volumediff.anomaly._context import classes_of
from volumediff.anomaly._filters import dilate, inside_quantile
from volumediff.anomaly.method_input import Example
from volumediff.anomaly.needs.model import PredictsMeans
from volumediff.batch import Batch
from volumediff.component import Component, Requirement
from volumediff.condition import HEALTHY, Condition
from volumediff.config import name_of
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.networks._block import ResidualBlock
from volumediff.networks._layers import Norm
from volumediff.randomness import key as key_of

__all__ = ["Adaptation", "AffineAdaptation"]


@dataclass(frozen=True)
class Normalised(Requirement):
    """A model of whole volumes, whose network has normalisations."""

    def check(self, model: Model) -> None:
        """Recipe and network are asked."""
        if not model.recipe.whole:
            raise ValueError(
                "adapt affine: expected a checkpoint of the recipe healthy or class_conditional, "
                f"got {name_of(type(model.recipe))}; use adapt=null."
            )
        if not _affine(model.network):
            raise ValueError(
                "adapt affine: expected a network with normalisations, got "
                f"{name_of(type(model.network))}, which has none; use adapt=null."
            )


@dataclass(frozen=True)
class Adaptation(Component, ABC):
    """A change of the network for one volume."""

    @abstractmethod
    def suspected(
        self, a: Float[Tensor, "1 1 d h w"], example: Example
    ) -> Bool[Tensor, "1 1 d h w"]:
        """What the adaptation must not look at, by the map of the network as it is."""

    @abstractmethod
    def adapted(
        self, model: Model, example: Example, *, suspected: Bool[Tensor, "1 1 d h w"], key: int
    ) -> AbstractContextManager[None]:
        """A context in which the model is adapted; after it every weight has its old bits."""


@dataclass(frozen=True)
class AffineAdaptation(Adaptation):
    """Fits scale and shift of the network's normalisations to one volume, those of FiLM, too.

    Adam, as in Tent, moves every parameter by at most about `steps * lr`.

    Arguments:
        steps: gradient steps
        lr: learning rate; Tent takes 1e-3
        draws: times and noises per step, each a pass forward and back
        quantile: share of the foreground that is not suspected, in (0, 1]; 1 suspects nothing
        dilate_mm: how far around the highest voxels the map is suspected too
    """

    steps: int = 10
    lr: float = 1e-3
    draws: int = 4
    quantile: float = 0.95
    dilate_mm: float = 6.0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.draws < 1 or self.lr <= 0:
            raise ValueError(
                f"expected steps >= 1, draws >= 1 and lr > 0, got {self.steps}, {self.draws} and "
                f"{self.lr}."
            )
        if not 0 < self.quantile <= 1 or self.dilate_mm < 0:
            raise ValueError(
                f"expected quantile in (0, 1] and dilate_mm >= 0, got {self.quantile} and "
                f"{self.dilate_mm}."
            )

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """A model of whole volumes, with normalisations."""
        return Normalised(), PredictsMeans()

    def suspected(
        self, a: Float[Tensor, "1 1 d h w"], example: Example
    ) -> Bool[Tensor, "1 1 d h w"]:
        """The top quantile of the map in the foreground, dilated."""
        top = a > inside_quantile(a, self.quantile, foreground=example.foreground)
        top = (top & example.foreground).to(a.dtype)
        return dilate(top, radius_mm=self.dilate_mm, spacing_mm=example.spacing_mm) > 0

    @contextmanager
    def adapted(
        self, model: Model, example: Example, *, suspected: Bool[Tensor, "1 1 d h w"], key: int
    ) -> Iterator[None]:
        """The model after the steps.

        Raises:
            ValueError: nothing of the foreground is left to fit, or the loss is not finite
        """
        if not bool((example.foreground & ~suspected).any()):
            raise ValueError(
                "adapt affine: expected foreground outside of what is suspected, got none; raise "
                "adapt.quantile or lower adapt.dilate_mm."
            )
        parameters = _affine(model.network)
        before = [(p, p.detach().clone(), p.requires_grad, p.grad) for p in parameters]
        try:
            self._fit(model, parameters, example, suspected.to(example.x.dtype), key)
            for p, _, wanted, grad in before:
                p.requires_grad_(wanted)
                p.grad = grad
            yield
        finally:
            for p, value, wanted, grad in before:
                with torch.no_grad():
                    p.copy_(value)
                p.requires_grad_(wanted)
                p.grad = grad

    @torch.enable_grad()
    def _fit(
        self,
        model: Model,
        parameters: Sequence[nn.Parameter],
        example: Example,
        hidden: Tensor,
        key: int,
    ) -> None:
        for p in parameters:
            p.requires_grad_(True)
            p.grad = None
        condition = _healthy(model, example.condition)
        optimizer = torch.optim.Adam(parameters, lr=self.lr, foreach=False)
        for step in range(self.steps):
            total: list[Tensor | None] = [None] * len(parameters)
            for draw in range(self.draws):  # one by one: the memory of a single sample
                keys = (key_of(key, step, draw),)
                loss = model.loss(Batch(example.x, keys, condition, hidden=hidden)).mean()
                value = loss.detach().item()
                if not math.isfinite(value):
                    raise ValueError(
                        f"adapt affine: expected a finite loss, got {value} at step {step}; "
                        "lower adapt.lr."
                    )
                grads = torch.autograd.grad(loss / self.draws, parameters, allow_unused=True)
                total = [
                    b if a is None else a if b is None else a + b
                    for a, b in zip(total, grads, strict=True)
                ]
            for p, grad in zip(parameters, total, strict=True):
                p.grad = grad
            optimizer.step()


def _affine(network: Network) -> list[nn.Parameter]:
    """Scales and shifts of the normalisations, and the constant part of FiLM."""
    found: dict[int, nn.Parameter] = {}
    for module in network.modules():
        parameters: tuple[nn.Parameter, ...] = ()
        if isinstance(module, Norm):
            parameters = (module.weight, module.bias)
        elif isinstance(module, ResidualBlock) and module.mode == "film":
            parameters = () if module.project is None else (module.project.bias,)
        found |= {id(p): p for p in parameters}
    return list(found.values())


def _healthy(model: Model, condition: Condition) -> Condition:
    """The condition of the denoiser: the healthy class, which is what is left of the volume."""
    if not classes_of(model):
        return condition
    return condition.replace(label=torch.full((1,), HEALTHY, device=model.device))
