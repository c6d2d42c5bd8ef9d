r"""Noise schedules: the map from time to signal and noise,

.. math:: z_t = \alpha_t z_0 + \sigma_t \epsilon, \qquad
          \lambda_t = \log(\alpha_t^2 / \sigma_t^2),

for t in [0, 1], from clean (t = 0, where alpha = 1 and sigma = 0 exactly) to noisiest (t = 1),
with a log-SNR that falls strictly. Nothing else is asked of the pair: it may preserve variance,
as in `_preserving`, be a straight line, as in `rectified`, or keep all of the signal, as in
`exploding`.
Paper step k of T, counted from 0, is t = (k + 1) / T. All of it is computed in float64.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = [
    "Schedule",
    "check_shift",
    "global_mean_snr",
    "per_sample",
    "power",
    "shift_for",
    "turning",
]

# Halvings of [0, 1] after which float64 times near 0.5 cannot be told apart.
HALVINGS = 60
# log-SNR by which a target may lie below the schedule's own end through rounding.
SLACK = 1e-9
# Within which alpha^2 + sigma^2 is 1: float64 rounding, which is no change of scale.
ROUNDING = 1e-12
# Voxels of the 32 x 32 images for which the linear schedule was chosen: Ho et al. (2020).
REFERENCE_VOXELS = 32 * 32


class Schedule(ABC):
    """Signal and noise as functions of time.

    Attributes:
        variance_preserving: whether alpha^2 + sigma^2 = 1 at every t
        variance_exploding: whether alpha = 1 at every t, so that states grow with their noise
        zero_terminal_snr: whether alpha is 0 at t = 1; excludes eps-prediction
    """

    variance_preserving: ClassVar[bool] = False
    variance_exploding: ClassVar[bool] = False
    zero_terminal_snr: bool = False

    @abstractmethod
    def __call__(self, t: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """(alpha_t, sigma_t) in float64, made of t by differentiable operations."""

    def rates(self, t: Float[Tensor, "b"]) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """(d alpha / dt, d sigma / dt) in float64.

        Not finite where a level has no slope, such as sigma of variance-preserving schedules at
        t = 0.
        """
        t = t.detach().double()
        # Dense: forward differentiation takes no expanded tensor, as times of a batch often are.
        t = t.contiguous()
        _, rates = torch.func.jvp(self, (t,), (torch.ones_like(t),))
        return rates

    def transition(
        self, s: Float[Tensor, "b"], t: Float[Tensor, "b"]
    ) -> tuple[Float[Tensor, "b"], Float[Tensor, "b"]]:
        """Gain alpha_t / alpha_s and variance of q(z_t | z_s), for s < t."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self(t), self(s)
        gain = alpha_t / alpha_s
        if self.variance_preserving:
            return gain, 1 - gain.square()
        return gain, (sigma_t.square() - (gain * sigma_s).square()).clamp(min=0)

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
                f"{float(target.min()):.3f}; use a higher one, or train with a noisier schedule."
            )
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            cleaner = self.log_snr(middle) > target
            low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
        # The ends are exact: bisection comes within rounding of them only.
        times = torch.where(target <= end + SLACK, 1.0, (low + high) / 2)
        return torch.where(target == float("inf"), 0.0, times)


def check_shift(shift: float) -> None:
    """Raises ValueError for a factor that divides no SNR."""
    if not 0 < shift < float("inf"):
        raise ValueError(f"expected a positive shift, got {shift}; 1 changes nothing.")


def check_noise_levels(sigma_min: float, sigma_max: float, rho: float) -> None:
    """Raises ValueError for noise levels that do not rise, or a rho below 1."""
    if not 0 < sigma_min < sigma_max < float("inf") or not rho >= 1:
        raise ValueError(
            f"expected 0 < sigma_min < sigma_max and rho >= 1, got {sigma_min}, {sigma_max} and "
            f"{rho}."
        )


def per_sample(values: Float[Tensor, "b"], z: Float[Tensor, "..."]) -> Float[Tensor, "b 1 1 1 1"]:
    """One number per sample, in the dtype and on the device of z, ready to multiply states."""
    return values.to(z)[:, None, None, None, None]


def power(alpha: Float[Tensor, "b"], sigma: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
    """alpha^2 + sigma^2, the variance of states of unit variance; exactly 1 where it is 1."""
    total = alpha.square() + sigma.square()
    return torch.where((total - 1).abs() < ROUNDING, 1.0, total)


def turning(
    levels: tuple[Float[Tensor, "b"], Float[Tensor, "b"]],
    rates: tuple[Float[Tensor, "b"], Float[Tensor, "b"]],
) -> Float[Tensor, "b"]:
    """alpha sigma' - sigma alpha': the error of u per error of v, in units of their scale."""
    (alpha, sigma), (d_alpha, d_sigma) = levels, rates
    return alpha * d_sigma - sigma * d_alpha


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
