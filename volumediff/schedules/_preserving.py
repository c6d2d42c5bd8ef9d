r"""Variance-preserving schedules: alpha_t^2 + sigma_t^2 = 1.

A schedule of this kind gives log(alpha_t); two changes are common to all and made here, in this
order:

- zero terminal SNR, alpha' = (alpha - alpha_1) / (1 - alpha_1): nothing of z_0 is left at t = 1.
  Lin et al. (2024), arXiv:2305.08891, algorithm 1, which keeps t = 1/T where this keeps t = 0;
- shift, SNR' = SNR / shift: more noise at every t, for volumes of more voxels.

Near t = 0, sigma comes from expm1, not from 1 - alpha^2, and near a zero terminal SNR so does
alpha, so that both keep their relative accuracy.
"""

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.schedules._base import Schedule, check_shift

__all__ = ["VariancePreserving"]


@dataclass(frozen=True)
class VariancePreserving(Schedule):
    """Signal and noise from the logarithm of the signal.

    Arguments:
        zero_terminal_snr: rescale so that alpha is 0 at t = 1; excludes eps-prediction
        shift: factor > 0 by which the SNR is divided at every t; see `shift_for`
    """

    variance_preserving: ClassVar[bool] = True
    _: KW_ONLY
    zero_terminal_snr: bool = False
    shift: float = 1.0

    def __post_init__(self) -> None:
        check_shift(self.shift)

    @abstractmethod
    def log_alpha(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """log(alpha_t) before rescale and shift, float64, strictly decreasing, 0 at t = 0."""

    def __call__(self, t: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """(alpha_t, sigma_t) in float64."""
        t = t.double()
        levels = self.log_alpha(torch.cat([t, t.new_ones(1)]))
        log_alpha, last = levels[:-1], levels[-1:]
        if self.zero_terminal_snr:
            kept = -torch.expm1(last)
            missing = -torch.expm1(log_alpha) / kept  # 1 - alpha
            small = torch.exp(last) * torch.expm1(log_alpha - last) / kept
            alpha = torch.where(missing < 0.5, 1 - missing, small)
            sigma = (missing * (1 + alpha)).sqrt()
        else:
            alpha, sigma = torch.exp(log_alpha), (-torch.expm1(2 * log_alpha)).sqrt()
        if self.shift == 1:
            return alpha, sigma
        sigma = self.shift**0.5 * sigma
        norm = torch.hypot(alpha, sigma)
        return alpha / norm, sigma / norm
