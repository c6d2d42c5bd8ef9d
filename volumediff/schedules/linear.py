r"""Linear schedule: the variance of a step grows linearly,

.. math:: \beta_k = \beta_{first} + (\beta_{last} - \beta_{first}) \frac{k}{T - 1}, \qquad
          \alpha_t^2 = \prod_{j \le k} (1 - \beta_j) \;\text{ at }\; t = \frac{k + 1}{T}.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._preserving import VariancePreserving
from volumediff.schedules._table import check_betas, interpolate

__all__ = ["LinearSchedule"]


@dataclass(frozen=True)
class LinearSchedule(VariancePreserving):
    """Steps of linearly growing variance; between them log(alpha) is interpolated.

    Arguments:
        levels: T, number of steps of the table
        beta_first: variance of the cleanest step, in (0, 1)
        beta_last: variance of the noisiest step, in (0, 1)

    References:
        Ho et al. (2020), Denoising Diffusion Probabilistic Models, arXiv:2006.11239, sec. 4
    """

    levels: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self.levels, self.beta_first, self.beta_last)

    def log_alpha(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        first, last = self.beta_first, self.beta_last
        betas = torch.linspace(first, last, self.levels, dtype=torch.float64, device=t.device)
        return interpolate(betas, t)
