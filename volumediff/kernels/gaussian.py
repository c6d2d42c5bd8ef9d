"""Gaussian kernel: the network sees the state itself and its time, and gives eps, x0, v or u.

The corruption is that of `_gaussian_path`, for any signal and noise.
"""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Prediction
from volumediff.kernels._gaussian_path import GaussianPath
from volumediff.schedules._base import per_sample
from volumediff.weightings import EpsWeighting, UWeighting, VWeighting, Weighting, X0Weighting

__all__ = ["Gaussian"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]
Quantity = Literal["eps", "x0", "v", "u"]
ERRORS: dict[Quantity, Weighting] = {
    "eps": EpsWeighting(),
    "x0": X0Weighting(),
    "v": VWeighting(),
    "u": UWeighting(),
}


@dataclass(frozen=True)
class Gaussian(GaussianPath):
    """Gaussian noise; the network gives eps, x0, v or u, the velocity of the flow.

    With the schedule rectified and u this is rectified flow.

    Arguments:
        schedule: signal and noise over time; one whose states grow is for the kernel edm
        prediction: what the network's output is
        weighting, variance: see `GaussianPath`

    References:
        Ho et al. (2020), arXiv:2006.11239; Salimans and Ho (2022), arXiv:2202.00512, for v;
        Lipman et al. (2023), Flow Matching for Generative Modeling, arXiv:2210.02747, for u
    """

    prediction: Quantity = "v"

    def __post_init__(self) -> None:
        if self.prediction == "eps" and self.schedule.zero_terminal_snr:
            raise ValueError(
                "prediction eps does not go with zero_terminal_snr: at t = 1 the state is all "
                "noise, so that eps says nothing about z_0; use v or x0."
            )
        if self.schedule.variance_exploding:
            raise ValueError(
                "schedule: expected one whose states keep about their size, since the network "
                f"sees them as they are, got {type(self.schedule).__name__}; use "
                '"kernel={name: edm, schedule: exploding}", which scales them.'
            )

    def read(self, output: State, z_t: State, t: Level) -> Prediction:
        alpha, sigma = self.schedule(t)
        if self.prediction == "eps":
            return Prediction.from_eps(output, z_t, alpha, sigma)
        if self.prediction == "x0":
            return Prediction.from_x0(output, z_t, alpha, sigma)
        if self.prediction == "u":
            return Prediction.from_u(output, z_t, (alpha, sigma), self.schedule.rates(t))
        return Prediction.from_v(output, z_t, alpha, sigma)

    def target(self, z_0: State, t: Level, noise: State) -> State:
        alpha, sigma = self.schedule(t)
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return z_0
        if self.prediction == "u":
            d_alpha, d_sigma = self.schedule.rates(t)
            return (per_sample(d_alpha, z_0) * z_0).add_(per_sample(d_sigma, z_0) * noise)
        return (per_sample(alpha, z_0) * noise).sub_(per_sample(sigma, z_0) * z_0)

    def size(self, t: Level) -> Level:
        return ERRORS[self.prediction].size(self.schedule, t)
