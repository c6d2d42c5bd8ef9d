r"""Predictions: one network output, read in three ways,

.. math:: z_t = \alpha z_0 + \sigma \epsilon, \qquad v = \alpha \epsilon - \sigma z_0,
          \qquad z_0 = \alpha z_t - \sigma v, \qquad \epsilon = \sigma z_t + \alpha v.

v: Salimans and Ho (2022), arXiv:2202.00512. All three are affine in each other at fixed z_t, so
that weights which add up to 1 (guidance) may be applied to any of them.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import per_sample

__all__ = ["Prediction"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]


@dataclass(frozen=True)
class Prediction:
    """What a noisy state says about the clean one.

    Arguments:
        x0: the clean state z_0, as its mean; for discrete states, coded in -1 and 1, it holds the
            probabilities of their classes
        eps: the noise; NaN where states are discrete
        v: alpha eps - sigma x0
        noisy: log-odds that there is noise in a state voxel, of networks that predict it
    """

    x0: State
    eps: State
    v: State
    noisy: Float[Tensor, "b 1 d h w"] | None = None

    @classmethod
    def from_x0(cls, output: State, z_t: State, alpha: Level, sigma: Level) -> "Prediction":
        """From the clean state. At sigma = 0 the noise is undetermined and taken as 0."""
        noise = _inverse(sigma)
        eps = per_sample(noise, z_t) * z_t - per_sample(alpha * noise, z_t) * output
        return cls(output, eps, _v(output, eps, alpha, sigma))

    @classmethod
    def from_eps(cls, output: State, z_t: State, alpha: Level, sigma: Level) -> "Prediction":
        """From the noise. At alpha = 0 the clean state is undetermined and taken as 0."""
        signal = _inverse(alpha)
        x0 = per_sample(signal, z_t) * z_t - per_sample(sigma * signal, z_t) * output
        return cls(x0, output, _v(x0, output, alpha, sigma))

    @classmethod
    def from_v(cls, output: State, z_t: State, alpha: Level, sigma: Level) -> "Prediction":
        """From v, which determines both at every level."""
        a, s = per_sample(alpha, z_t), per_sample(sigma, z_t)
        return cls(a * z_t - s * output, s * z_t + a * output, output)


def _inverse(level: Level) -> Level:
    return torch.where(level > 0, 1 / level, 0.0)


def _v(x0: State, eps: State, alpha: Level, sigma: Level) -> State:
    return per_sample(alpha, x0) * eps - per_sample(sigma, x0) * x0
