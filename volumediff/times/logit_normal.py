r"""Logit-normal training times: most of them in the middle,

.. math:: \log\frac{t}{1 - t} \sim N(m, s^2).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule
from volumediff.times._normal import NormalDensity, cut_normal

__all__ = ["LogitNormal"]


@dataclass(frozen=True)
class LogitNormal(NormalDensity):
    """Times whose logit is normal, cut to an interval.

    Arguments:
        mean: m, of the logit; above 0 for more time at high noise
        deviation: s > 0
        low: where the interval begins, itself excluded
        high: where it ends

    References:
        Esser et al. (2024), Scaling Rectified Flow Transformers for High-Resolution Image
        Synthesis, arXiv:2403.03206, eq. 19: mean 0 and deviation 1
    """

    mean: float = 0.0
    deviation: float = 1.0

    def at(self, u: Float[Tensor, "b"], schedule: Schedule) -> Float[Tensor, "b"]:
        ends = torch.tensor([self.low, self.high], dtype=torch.float64, device=u.device)
        low, high = (ends.logit() - self.mean) / self.deviation
        logit = self.mean + self.deviation * cut_normal(u, low, high)
        return torch.sigmoid(logit).clamp(self.low, self.high)
