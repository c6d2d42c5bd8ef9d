r"""Draws of p(x_T | x_S) by the run's own network, from pure noise to t = 0."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.compatibility import require
from volumediff.compatibility.chains import sampler_problem
from volumediff.condition import Condition
from volumediff.model import Model
from volumediff.randomness import key as key_of
from volumediff.samplers._base import Sampler
from volumediff.samplers.ddim import DDIM
from volumediff.translation.translators._base import Translator

__all__ = ["DiffusionTranslator"]


@dataclass(frozen=True)
class DiffusionTranslator(Translator):
    """A chain of the run's model, conditioned on the source channels.

    Arguments:
        sampler: with its number of steps; the network is called about once per step
        samples: independent draws; their mean is the translation, and their standard deviation
            says where it is uncertain

    References:
        Saharia et al. (2022), Palette: Image-to-Image Diffusion Models, arXiv:2111.05826
    """

    sampler: Sampler = field(default_factory=lambda: DDIM(5))
    samples: int = 1

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples: expected at least 1, got {self.samples}.")

    def check(self, model: Model) -> None:
        """The sampler must walk the model's states."""
        require(sampler_problem(self.sampler, type(model.kernel)))

    @torch.no_grad()
    def draws(
        self,
        model: Model,
        sources: Float[Tensor, "1 s d h w"],
        *,
        foreground: Bool[Tensor, "1 1 d h w"],
        key: int,
        condition: Condition,
    ) -> Iterator[Float[Tensor, "1 t d h w"]]:
        shape = tuple(sources.shape[2:])
        targets = model.recipe.channels(0)
        kernel, schedule = model.kernel, model.kernel.schedule
        condition = model.prepared(model.told(condition, sources.split(1, dim=1)))
        start = model.time_density.support[1]
        for i in range(self.samples):
            noise = model.noise((key_of(key, i),), (targets, *shape))
            z = self.sampler.sample(
                model.denoise,
                kernel,
                kernel.prior(noise(-1)),
                self.sampler.times(schedule, start=start),
                condition=condition,
                noise=noise,
            )
            yield model.decode(z, shape)
