r"""EDM kernel: the network sees states of unit variance and a log noise level, and gives F,

.. math:: S = \sigma_t / \alpha_t, \quad n = \sqrt{S^2 + s^2}, \qquad
          \hat z_0 = \frac{s^2}{n^2} \frac{z_t}{\alpha_t} + \frac{S s}{n}
          F\Big(\frac{1}{n} \frac{z_t}{\alpha_t},\; \frac{\ln S}{4}\Big),

whose target has unit variance, too. All is about S and z / alpha alone: a network means the same
under every schedule, and a schedule only says how times are spread over noise levels. For s = 1,
F is minus the v-prediction of the variance-preserving state.
"""

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Prediction
from volumediff.kernels._gaussian_path import GaussianPath
from volumediff.schedules._base import per_sample

__all__ = ["EDM"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]
# log-SNR beyond which the clock stands still: noise of 1e-5 and 1e5 times the data.
CLOCK_ENDS = 2 * math.log(1e5)


@dataclass(frozen=True)
class EDM(GaussianPath):
    """Preconditioned denoiser of Karras et al., on the schedule exploding as on any other.

    The loss is the mean squared error of F, which is their weighted error of the clean state.

    Arguments:
        schedule: signal and noise over time
        sigma_data: s, standard deviation of clean states; spaces make it 1
        weighting, variance: see `GaussianPath`

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models,
        arXiv:2206.00364, eq. 7 and table 1
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.sigma_data < float("inf"):
            raise ValueError(
                f"expected sigma_data above 0, got {self.sigma_data}; states of a space that is "
                "fitted have 1."
            )

    def shown(self, z_t: State, t: Level) -> tuple[State, Level]:
        log_snr = self.schedule.log_snr(t).clamp(-CLOCK_ENDS, CLOCK_ENDS)
        return per_sample(1 / self._deviation(t), z_t) * z_t, -log_snr / 8

    def read(self, output: State, z_t: State, t: Level) -> Prediction:
        alpha, sigma = self.schedule(t)
        deviation = self._deviation(t)
        kept, added = sigma / deviation, alpha * self.sigma_data / deviation
        # in units of alpha, so that no schedule is divided by it
        x0 = (
            per_sample(added * self.sigma_data / deviation, z_t) * z_t
            + per_sample(kept * self.sigma_data, z_t) * output
        )
        eps = per_sample(kept / deviation, z_t) * z_t - per_sample(added, z_t) * output
        v = per_sample(alpha, z_t) * eps - per_sample(sigma, z_t) * x0
        return Prediction(x0, eps, v)

    def target(self, z_0: State, t: Level, noise: State) -> State:
        alpha, sigma = self.schedule(t)
        deviation = self._deviation(t)
        of_z_0 = sigma / (self.sigma_data * deviation)
        return (
            per_sample(of_z_0, z_0) * z_0
            - per_sample(alpha * self.sigma_data / deviation, z_0) * noise
        )

    def size(self, t: Level) -> Level:
        return self._deviation(t) / self.sigma_data

    def _deviation(self, t: Level) -> Level:
        """Standard deviation of z_t: alpha n."""
        alpha, sigma = self.schedule(t)
        return ((self.sigma_data * alpha).square() + sigma.square()).sqrt()
