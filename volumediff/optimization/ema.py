r"""Exponential moving average of the weights, in float32 or wider.

.. math:: \bar\theta_n = \beta_n \bar\theta_{n-1} + (1 - \beta_n)\,\theta_n, \qquad
          \beta_n = \min\left(\beta, \frac{1 + n}{10 + n}\right)

after update n = 1, 2, ...; the ramp lets short runs forget their initial weights.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["EMA"]


class EMA:
    """The averaged copy of some tensors, kept by name.

    Arguments:
        tensors: the trained parameters by name
        decay: beta in [0, 1); 0 follows the weights exactly
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"expected a decay in [0, 1), got {decay}; 0 switches averaging off.")
        self.decay = decay
        self.tensors = {
            n: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True)
            for n, p in tensors.items()
        }

    @torch.no_grad()
    def update(self, tensors: Mapping[str, Tensor], *, step: int) -> None:
        """Takes the weights after update number `step` into the average (step = 1, 2, ...)."""
        beta = min(self.decay, (1 + step) / (10 + step))
        current = [tensors[name].detach().to(a) for name, a in self.tensors.items()]
        torch._foreach_lerp_(list(self.tensors.values()), current, 1 - beta)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replaces the averages by stored ones of the same names and shapes."""
        for name, average in self.tensors.items():
            average.copy_(tensors[name])
