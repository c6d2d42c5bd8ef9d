"""Guidance that a network has learnt: its weight is an input, and one call is enough."""

from dataclasses import dataclass

import torch
from torch import Tensor

from volumediff.condition import Condition
from volumediff.guidance._base import Guidance
from volumediff.kernels._base import Denoiser, Prediction
from volumediff.tunable import Tunable, tunable

__all__ = ["Embedded"]


@dataclass(frozen=True)
class Embedded(Guidance):
    """The weight of classifier-free guidance, told to a network that was distilled for it.

    Arguments:
        weight: w, within the weights that the run was distilled for; 1 is conditional

    References:
        Meng et al. (2023), On Distillation of Guided Diffusion Models, arXiv:2210.03142; its w is
        ours minus 1
    """

    weight: float = tunable(3.0, Tunable.STRENGTH)

    @property
    def told_weight(self) -> float | None:
        """The weight."""
        return self.weight

    def __call__(self, denoise: Denoiser) -> Denoiser:
        """The denoiser that is told the weight."""

        def guided(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
            weight = torch.full((len(z_t),), self.weight, dtype=torch.float32, device=z_t.device)
            return denoise(z_t, t, condition.replace(guidance=weight))

        return guided
