r"""Exploding schedule: all of the signal stays, and noise of any size comes to it,

.. math:: \alpha_t = 1, \qquad \sigma_t = \sigma_{max}\,
          \frac{(1 + c t)^\rho - 1}{(1 + c)^\rho - 1}, \qquad
          c = (\sigma_{max} / \sigma_{min})^{1 / \rho} - 1.

Equal steps of t are the steps of Karras et al. from sigma_max to sigma_min, moved down by
sigma_min, so that t = 0 is clean.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule, check_noise_levels

__all__ = ["Exploding"]


@dataclass(frozen=True)
class Exploding(Schedule):
    """Variance-exploding noise, for the kernel edm.

    For data of unit variance. The mean of n voxels is drowned at t = 1 where sigma_max is well
    above the root of n: 80 is for 32 x 32 images, and 64³ voxels take 2000.

    Arguments:
        sigma_max: noise at t = 1
        sigma_min: noise from which on times are about as dense as they get, in (0, sigma_max)
        rho: how much denser times are at low noise, at least 1

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models,
        arXiv:2206.00364, eq. 5
    """

    variance_exploding: ClassVar[bool] = True
    sigma_max: float = 80.0
    sigma_min: float = 0.002
    rho: float = 7.0

    def __post_init__(self) -> None:
        check_noise_levels(self.sigma_min, self.sigma_max, self.rho)

    def __call__(self, t: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """(alpha_t, sigma_t) in float64."""
        t = t.double()
        growth = math.log(self.sigma_max / self.sigma_min)  # rho log(1 + c)
        c = math.expm1(growth / self.rho)
        # expm1 and log1p keep the relative accuracy of small noise
        sigma = torch.expm1(self.rho * torch.log1p(c * t)) * (self.sigma_max / math.expm1(growth))
        return torch.ones_like(t), sigma
