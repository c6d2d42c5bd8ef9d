r"""Log-normal noise levels: most training where the error of the network can still fall,

.. math:: \log\frac{\sigma_t}{\alpha_t} \sim N(m, s^2),

whatever the schedule.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule
from volumediff.times._normal import NormalDensity, cut_normal

__all__ = ["LogNormal"]


@dataclass(frozen=True)
class LogNormal(NormalDensity):
    """Times whose log noise level is normal, cut to an interval of times.

    Arguments:
        mean: m, of the logarithm of sigma / alpha, for data of unit variance
        deviation: s > 0
        low: where the interval begins, itself excluded
        high: where it ends

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models,
        arXiv:2206.00364, table 1: mean -1.2 and deviation 1.2, there for data of deviation 0.5, so
        that states of unit variance have mean -0.5
    """

    mean: float = -0.5
    deviation: float = 1.2

    def at(self, u: Float[Tensor, "b"], schedule: Schedule) -> Float[Tensor, "b"]:
        ends = torch.tensor([self.low, self.high], dtype=torch.float64, device=u.device)
        log_snrs = schedule.log_snr(ends)
        low, high = (-log_snrs / 2 - self.mean) / self.deviation
        level = self.mean + self.deviation * cut_normal(u, low, high)
        # rounding must not ask for more noise than there is
        t = schedule.time((-2 * level).clamp(min=log_snrs[1]))
        return t.clamp(self.low, self.high)
