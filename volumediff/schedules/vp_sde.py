r"""Schedule of the variance-preserving stochastic differential equation: in continuous time the
rate of noise grows linearly,

.. math:: \log\alpha_t = -\frac{1}{2} \int_0^t \beta(s)\, ds
          = -\frac{\beta_{first}\, t}{2} - \frac{(\beta_{last} - \beta_{first})\, t^2}{4}.

`linear` is the chain of T steps of which this is the limit.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._preserving import VariancePreserving

__all__ = ["VPSDE"]


@dataclass(frozen=True)
class VPSDE(VariancePreserving):
    """Linearly growing rate of noise.

    Arguments:
        beta_first: rate at t = 0, positive
        beta_last: rate at t = 1, at least that of t = 0

    References:
        Song et al. (2021), Score-Based Generative Modeling through Stochastic Differential
        Equations, arXiv:2011.13456, eq. 32 and 33
    """

    beta_first: float = 0.1
    beta_last: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.beta_first <= self.beta_last:
            raise ValueError(
                f"expected 0 < beta_first <= beta_last, got {self.beta_first} and "
                f"{self.beta_last}."
            )

    def log_alpha(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        growth = self.beta_last - self.beta_first
        return -(self.beta_first / 2 + growth / 4 * t) * t
