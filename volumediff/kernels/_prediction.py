r"""Predictions: one network output, read in four ways,

.. math:: z_t = \alpha z_0 + \sigma \epsilon, \qquad v = \alpha \epsilon - \sigma z_0, \qquad
          u = \frac{d z_t}{d t} = \dot\alpha z_0 + \dot\sigma \epsilon,

for any alpha and sigma, so that

.. math:: z_0 = \frac{\alpha z_t - \sigma v}{\alpha^2 + \sigma^2}
              = \frac{\dot\sigma z_t - \sigma u}{\alpha \dot\sigma - \sigma \dot\alpha}, \qquad
          \epsilon = \frac{\sigma z_t + \alpha v}{\alpha^2 + \sigma^2}
              = \frac{\alpha u - \dot\alpha z_t}{\alpha \dot\sigma - \sigma \dot\alpha}.

v: Salimans and Ho (2022), arXiv:2202.00512; u: Lipman et al. (2023), arXiv:2210.02747. All four
are affine in each other at fixed z_t, so that weights which add up to 1 (guidance) may be applied
to any of them. Of them u is computed when it is asked for, from x0 and eps.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import per_sample, power, turning

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
        spread: r of every state voxel where the kernel learns the variance of its steps: 0 is the
            posterior's, 1 the forward one, in between the geometric mean with weights 1 - r and r
    """

    x0: State
    eps: State
    v: State
    noisy: Float[Tensor, "b 1 d h w"] | None = None
    spread: State | None = None

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
        total = power(alpha, sigma)
        a, s = per_sample(alpha / total, z_t), per_sample(sigma / total, z_t)
        return cls(a * z_t - s * output, s * z_t + a * output, output)

    @classmethod
    def from_u(
        cls,
        output: State,
        z_t: State,
        levels: tuple[Level, Level],
        rates: tuple[Level, Level],
    ) -> "Prediction":
        """From the velocity u, which determines both wherever it is finite.

        Where a level has no slope, as that of variance-preserving noise at t = 0, u says nothing:
        z_t is read as alpha z_0, and the noise is taken as 0.

        Arguments:
            levels: (alpha, sigma)
            rates: their derivatives in time
        """
        (alpha, sigma), (d_alpha, d_sigma) = levels, rates
        turn = turning(levels, rates)
        known = torch.isfinite(turn) & (turn > 0)

        def share(level: Level, otherwise: Level | float = 0.0) -> Tensor:
            return per_sample(torch.where(known, level / turn, otherwise), z_t)

        x0 = share(d_sigma, _inverse(alpha)) * z_t - share(sigma) * output
        eps = share(alpha) * output - share(d_alpha) * z_t
        return cls(x0, eps, _v(x0, eps, alpha, sigma))

    def velocity(self, rates: tuple[Level, Level]) -> State:
        """u = d z_t / dt of the probability flow.

        Arguments:
            rates: derivatives of alpha and sigma in time
        """
        d_alpha, d_sigma = (per_sample(rate, self.x0) for rate in rates)
        return d_alpha * self.x0 + d_sigma * self.eps


def _inverse(level: Level) -> Level:
    return torch.where(level > 0, 1 / level, 0.0)


def _v(x0: State, eps: State, alpha: Level, sigma: Level) -> State:
    return per_sample(alpha, x0) * eps - per_sample(sigma, x0) * x0
