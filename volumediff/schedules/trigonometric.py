r"""Trigonometric schedule: a quarter of a circle from data to noise,

.. math:: \alpha_t = \cos\frac{\pi t}{2}, \qquad \sigma_t = \sin\frac{\pi t}{2},

along which v is the velocity of the flow but for the factor pi / 2. `cosine` comes close to it,
with the offset and the limited last step of its paper.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule

__all__ = ["Trigonometric"]


@dataclass(frozen=True)
class Trigonometric(Schedule):
    """Signal and noise of constant power, whose terminal SNR is zero.

    References:
        Albergo and Vanden-Eijnden (2023), Building Normalizing Flows with Stochastic Interpolants,
        arXiv:2209.15571, for the interpolant; Danese et al. (2026), FlowLet, arXiv:2601.05212
    """

    variance_preserving: ClassVar[bool] = True
    zero_terminal_snr: ClassVar[bool] = True

    def __call__(self, t: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """(alpha_t, sigma_t) in float64."""
        angle = math.pi / 2 * t.double()
        # The sine of the complement: exactly 0 at t = 1, where the cosine rounds.
        return torch.sin(math.pi / 2 * (1 - t.double())), torch.sin(angle)
