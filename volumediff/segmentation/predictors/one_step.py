r"""One step: the mean of all label maps, from pure noise in a single call,

.. math:: \hat m = E[m | z_1, x], \qquad z_1 \sim \text{prior},

which is what a network trained on every time knows best at t = 1: a deterministic segmentation,
and the starting point against which chains have to prove themselves. Members differ by their
noise, which says little there.

References:
    Lin et al. (2024), Stable Diffusion Segmentation (SDSeg), arXiv:2406.18361, sec. 3.2
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.compatibility import require
from volumediff.compatibility.methods import mean_problem
from volumediff.model import Model
from volumediff.samplers._base import Sampler
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.predictors._base import Estimate
from volumediff.segmentation.predictors._label_model import EncodedImage, LabelModelPredictor

__all__ = ["OneStep"]


@dataclass(frozen=True)
class OneStep(LabelModelPredictor):
    """The mean of p(m | x) by one call at the largest time that the run was trained at."""

    def check(self, model: Any) -> None:
        super().check(model)
        require(mean_problem(model))

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
        recipe, largest = model.recipe, model.time_density.support[1]
        noise = model.noise([d.key for d in draws], (recipe.channels(0), *prepared.shape))
        condition = prepared.expanded(draws)
        z = model.kernel_of(condition).prior(noise(-1), largest)
        t = torch.full((len(draws),), largest, dtype=torch.float64, device=z.device)
        x0 = model.denoise(z, t, condition).x0
        x = model.decode(x0, prepared.shape)
        return recipe.coding.decode(x, spacing_mm=prepared.spacing_mm)
