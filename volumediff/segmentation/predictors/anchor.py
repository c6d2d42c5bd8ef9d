r"""The anchor: what the image branch of a diffusion model predicts by itself,

.. math:: \hat m = a(x),

without noise, time or denoiser. It is the ablation that a model with such a branch needs: what the
samples are better by than this, the diffusion has added.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.model import Model
from volumediff.samplers._base import Sampler
from volumediff.segmentation.draw import Draw
from volumediff.segmentation.predictors._base import Estimate
from volumediff.segmentation.predictors._label_model import EncodedImage, LabelModelPredictor

__all__ = ["AnchorPredictor"]


@dataclass(frozen=True)
class AnchorPredictor(LabelModelPredictor):
    """The deterministic prediction of a conditioner such as `anchor`; the denoiser never runs."""

    draws: ClassVar[bool] = False

    def check(self, model: Any) -> None:
        super().check(model)
        if not model.network.conditioner.anchors:
            raise ValueError(
                "conditioner: expected one whose image branch predicts the labels, such as "
                "anchor; use predictor=one_step, or train with method=medsegdiff."
            )

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
        z = model.network.conditioner.anchor(prepared.condition.prepared)
        assert z is not None, "checked"
        x = model.decode(z.float(), prepared.shape)
        y = model.recipe.coding.decode(x, spacing_mm=prepared.spacing_mm)
        return y.expand(len(draws), *y.shape[1:])
