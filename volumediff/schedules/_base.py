r"""Noise schedules: the variance-preserving map from time to signal and noise,

.. math:: z_t = \alpha_t z_0 + \sigma_t \epsilon, \qquad \alpha_t^2 + \sigma_t^2 = 1,
          \qquad \lambda_t = \log(\alpha_t^2 / \sigma_t^2),

for t in [0, 1], from clean (t = 0, where alpha = 1 exactly) to noisiest (t = 1). Paper step k of
T, counted from 0, is t = (k + 1) / T. A file of this folder gives log(alpha_t); two changes are
common to all and made here, in this order:

- zero terminal SNR, alpha' = (alpha - alpha_1) / (1 - alpha_1): nothing of z_0 is left at t = 1.
  Lin et al. (2024), arXiv:2305.08891, algorithm 1, which keeps t = 1/T where this keeps t = 0;
- shift, SNR' = SNR / shift: more noise at every t, for volumes of more voxels.

All of it is computed in float64. Near t = 0, sigma comes from expm1, not from 1 - alpha^2, and
near a zero terminal SNR so does alpha, so that both keep their relative accuracy.
"""

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["Schedule", "global_mean_snr", "per_sample", "shift_for"]

# Halvings of [0, 1] after which float64 times near 0.5 cannot be told apart.
HALVINGS = 60
# log-SNR by which a target may lie below the schedule's own end through rounding.
SLACK = 1e-9
# Voxels of the 32 x 32 images for which the linear schedule was chosen: Ho et al. (2020).
REFERENCE_VOXELS = 32 * 32


@dataclass(frozen=True)
class Schedule(ABC):
    """Signal and noise as functions of time.

    Arguments:
        zero_terminal_snr: rescale so that alpha is 0 at t = 1; excludes eps-prediction
        shift: factor > 0 by which the SNR is divided at every t; see `shift_for`
    """

    _: KW_ONLY
    zero_terminal_snr: bool = False
    shift: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.shift < float("inf"):
            raise ValueError(f"expected a positive shift, got {self.shift}; 1 changes nothing.")

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

    def log_snr(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """lambda_t in float64: +inf at t = 0, -inf at t = 1 if the terminal SNR is zero."""
        alpha, sigma = self(t)
        return 2 * (alpha.log() - sigma.log())

    def time(self, log_snr: Float[Tensor, "n"]) -> Float[Tensor, "n"]:
        """The times with these log-SNRs, by bisection in float64.

        Raises:
            ValueError: a log-SNR that is below that of t = 1
        """
        target = log_snr.double()
        low, high = torch.zeros_like(target), torch.ones_like(target)
        end = self.log_snr(high)
        if bool((target < end - SLACK).any()):
            raise ValueError(
                f"expected a log-SNR of at least {float(end.min()):.3f}, the schedule's last, got "
                f"{float(target.min()):.3f}; use a higher one or zero_terminal_snr: true."
            )
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            cleaner = self.log_snr(middle) > target
            low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
        # The ends are exact: bisection comes within rounding of them only.
        times = torch.where(target <= end + SLACK, 1.0, (low + high) / 2)
        return torch.where(target == float("inf"), 0.0, times)


def per_sample(values: Float[Tensor, "b"], z: Float[Tensor, "..."]) -> Float[Tensor, "b 1 1 1 1"]:
    """One number per sample, in the dtype and on the device of z, ready to multiply states."""
    return values.to(z)[:, None, None, None, None]


def shift_for(voxels: int, *, reference: int = REFERENCE_VOXELS) -> float:
    r"""The shift that hides the global mean of a volume as well as that of the reference.

    The mean of n voxels is seen at the SNR n alpha^2 / sigma^2, so n / n_reference keeps it.
    Hoogeboom et al. (2023), arXiv:2301.11093, for images.

    Arguments:
        voxels: n, voxels per channel of the volume
        reference: voxels of the images that the unshifted schedule was made for
    """
    return voxels / reference


def global_mean_snr(schedule: Schedule, voxels: int) -> float:
    r"""n SNR_1: how visible the global mean of a volume of unit variance still is at t = 1.

    Samples that start from N(0, I) have 1 / sqrt(1 + n SNR_1) of the true deviation of the mean;
    above 0.05 that is a loss of more than 2 %.
    """
    alpha, sigma = schedule(torch.ones(1, dtype=torch.float64))
    return voxels * float((alpha / sigma).square())
