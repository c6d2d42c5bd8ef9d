r"""Weightings: of which error the loss of a Gaussian kernel is the mean square.

At fixed z_t all errors are multiples of one number, the error of x0 in units of sigma,

.. math:: \hat z_0 - z_0 = \sigma e, \quad \hat\epsilon - \epsilon = -\alpha e, \quad
          \hat v - v = -(\alpha^2 + \sigma^2) e, \quad
          \hat u - u = -(\alpha \dot\sigma - \sigma \dot\alpha) e,

so that a weighting says how large its own is for e = 1, whatever the network gives.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule, power, turning

__all__ = [
    "EpsWeighting",
    "MinSNRWeighting",
    "UWeighting",
    "VWeighting",
    "Weighting",
    "X0Weighting",
]

Level = Float[Tensor, "b"]


@dataclass(frozen=True)
class Weighting(ABC):
    """A weight for every level, as the size of an error."""

    @abstractmethod
    def size(self, schedule: Schedule, t: Level) -> Level:
        """The error, in float64 and not negative, where that of x0 is sigma_t."""


class X0Weighting(Weighting):
    """The error of the clean state: every level counts as in the samples."""

    def size(self, schedule: Schedule, t: Level) -> Level:
        return schedule(t)[1]


class EpsWeighting(Weighting):
    """The error of the noise: that of the clean state times the root of the SNR."""

    def size(self, schedule: Schedule, t: Level) -> Level:
        return schedule(t)[0]


class VWeighting(Weighting):
    """The error of v: SNR + 1 on that of the clean state, where variance is preserved."""

    def size(self, schedule: Schedule, t: Level) -> Level:
        return power(*schedule(t))


class UWeighting(Weighting):
    """The error of the velocity of the flow."""

    def size(self, schedule: Schedule, t: Level) -> Level:
        return turning(schedule(t), schedule.rates(t))


@dataclass(frozen=True)
class MinSNRWeighting(Weighting):
    """The error of the noise, but no level counts more than gamma times as in the samples.

    Levels of much signal, of which many are trained and each is easy, no longer dominate:
    the weight of the clean state's squared error is min(SNR, gamma).

    Arguments:
        gamma: largest weight, > 0

    References:
        Hang et al. (2023), Efficient Diffusion Training via Min-SNR Weighting Strategy,
        arXiv:2303.09556, eq. 9: 5
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if not 0 < self.gamma < float("inf"):
            raise ValueError(f"expected gamma above 0, got {self.gamma}; the paper has 5.")

    def size(self, schedule: Schedule, t: Level) -> Level:
        alpha, sigma = schedule(t)
        return torch.minimum(alpha, self.gamma**0.5 * sigma)
