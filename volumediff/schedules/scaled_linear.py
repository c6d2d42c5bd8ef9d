r"""Scaled-linear schedule: the deviation of a step, not its variance, grows linearly,

.. math:: \sqrt{\beta_k} = \sqrt{\beta_{first}} + (\sqrt{\beta_{last}} - \sqrt{\beta_{first}})
          \frac{k}{T - 1}, \qquad
          \alpha_t^2 = \prod_{j \le k} (1 - \beta_j) \;\text{ at }\; t = \frac{k + 1}{T}.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._preserving import VariancePreserving
from volumediff.schedules._table import check_betas, interpolate

__all__ = ["ScaledLinear"]


@dataclass(frozen=True)
class ScaledLinear(VariancePreserving):
    """Steps of linearly growing deviation; between them log(alpha) is interpolated.

    Arguments:
        levels: T, number of steps of the table
        beta_first: variance of the cleanest step, in (0, 1)
        beta_last: variance of the noisiest step, in (0, 1)

    References:
        Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion Models,
        arXiv:2112.10752; the values are those of its released latent models
    """

    levels: int = 1000
    beta_first: float = 0.00085
    beta_last: float = 0.012

    def __post_init__(self) -> None:
        super().__post_init__()
        check_betas(self.levels, self.beta_first, self.beta_last)

    def log_alpha(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        first, last = self.beta_first**0.5, self.beta_last**0.5
        roots = torch.linspace(first, last, self.levels, dtype=torch.float64, device=t.device)
        return interpolate(roots.square(), t)
