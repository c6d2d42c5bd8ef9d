r"""Rectified schedule: a straight line from data to noise,

.. math:: \alpha_t = 1 - \tau, \qquad \sigma_t = \tau, \qquad
          \tau = \frac{r\, t}{1 + (r - 1)\, t}, \qquad r = \sqrt{\text{shift}},

so that the velocity of the flow, of `prediction: u`, is eps - z_0 for shift 1.
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule, check_shift

__all__ = ["Rectified"]


@dataclass(frozen=True)
class Rectified(Schedule):
    """Signal 1 - t and noise t, whose terminal SNR is zero.

    Arguments:
        shift: factor > 0 by which the SNR is divided at every t, see `shift_for`: the square of
            the factor r that some codes call shift. With n / m for n voxels and a model of m, it
            is that of Esser et al.; (n / m)^(2/3) is the transform of times in MAISI

    References:
        Liu et al. (2023), Flow Straight and Fast, arXiv:2209.03003; Esser et al. (2024),
        arXiv:2403.03206, eq. 23, for the shift; Guo et al. (2024), MAISI, arXiv:2409.11169
    """

    zero_terminal_snr: ClassVar[bool] = True
    _: KW_ONLY
    shift: float = 1.0

    def __post_init__(self) -> None:
        check_shift(self.shift)

    def __call__(self, t: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """(alpha_t, sigma_t) in float64."""
        t = t.double()
        if self.shift == 1:
            return 1 - t, t
        r = self.shift**0.5
        total = (1 - t) + r * t
        return (1 - t) / total, r * t / total
