r"""Sampled labels: a reverse chain of a model p(m | x), from the prior to a clean code,

.. math:: z_1 \sim \text{prior}, \qquad z_s \sim p(z_s | z_t, x), \qquad y = D(A^{-1} z_0),

with D the reading of the recipe's coding.

References:
    Amit et al. (2021), SegDiff: Image Segmentation with Diffusion Probabilistic Models,
        arXiv:2112.00390
    Wolleb et al. (2022), Diffusion Models for Implicit Image Segmentation Ensembles,
        arXiv:2112.03145
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.compatibility import require
from volumediff.compatibility.chains import sampler_problem
from volumediff.model import Model
from volumediff.samplers._base import Context, Sampler
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.samplers.student import Student
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.predictors._base import Estimate
from volumediff.segmentation.predictors._label_model import EncodedImage, LabelModelPredictor

__all__ = ["SampledLabels"]


@dataclass(frozen=True)
class SampledLabels(LabelModelPredictor):
    """Label maps drawn from p(m | x), one chain per member.

    Methods that name no sampler walk a student as it was distilled to be walked, and other models
    by DPM-Solver++(2M) with 20 steps: few steps of a first-order sampler lose rare labels.
    """

    walks: ClassVar[bool] = True

    def check_sampler(self, model: Model, sampler: Sampler) -> None:
        """Raises ValueError, with the reason, for a sampler that cannot walk its states."""
        require(sampler_problem(sampler.of(model), type(model.kernel)))

    @torch.no_grad()
    def memberships(
        self,
        model: Model,
        prepared: EncodedImage,
        draws: Sequence[Draw],
        *,
        sampler: Sampler | None = None,
        told: Estimate | None = None,
    ) -> Float[Tensor, "n l d h w"]:
        if sampler is None:
            sampler = DPMSolverPP(20) if model.walk is None else Student()
        sampler, recipe = sampler.of(model), model.recipe
        keys = [draw.key for draw in draws]
        noise = model.noise(keys, (recipe.channels(0), *prepared.shape))

        def read(z: Tensor) -> Tensor:
            x = model.decode(z, prepared.shape)
            return recipe.coding.decode(x, spacing_mm=prepared.spacing_mm)

        condition = prepared.expanded(draws)
        kernel = model.kernel_of(condition)
        start = model.time_density.support[1]
        times = sampler.times(kernel.schedule, start)

        def estimate(context: Context) -> tuple[Tensor, Tensor]:
            assert told is not None
            told(read(context.prediction.x0), context.step, len(times) - 1)
            return context.prediction.x0, context.z_t

        z = sampler.sample(
            model.denoise,
            kernel,
            kernel.prior(noise(-1), start),
            times,
            condition=condition,
            noise=noise,
            on_x0=None if told is None else estimate,
        )
        return read(z)
