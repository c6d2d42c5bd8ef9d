r"""Gaussian kernel, for any signal and noise,

.. math:: q(z_t | z_0) &= N(\alpha_t z_0, \sigma_t^2), \qquad
          g = \alpha_t / \alpha_s, \quad b = \sigma_t^2 - g^2 \sigma_s^2, \\
          q(z_t | z_s) &= N(g z_s,\; b), \\
          q(z_s | z_t, z_0) &= N\!\Big(\frac{\alpha_s b}{\sigma_t^2} z_0 +
          \frac{g\, \sigma_s^2}{\sigma_t^2} z_t,\; b \frac{\sigma_s^2}{\sigma_t^2}\Big),

with b = 1 - g^2 where the schedule preserves variance. A learned variance is

.. math:: b\, (\sigma_s / \sigma_t)^{2 (1 - r)}, \qquad r = (1 + \text{output}) / 2,

which is that of q(z_s | z_t, z_0) at r = 0, right for data without spread, and b at r = 1, right
for data of unit variance.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel, Prediction
from volumediff.kernels._prediction import turning
from volumediff.schedules._base import per_sample, power

__all__ = ["Gaussian"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]
Quantity = Literal["eps", "x0", "v", "u"]


@dataclass(frozen=True)
class Gaussian(Kernel):
    """Gaussian noise; the network gives eps, x0, v or u, the velocity of the flow.

    The loss of a sample is the mean squared error of `weighting`, whatever the network gives. At
    fixed z_t the errors of x0, eps, v and u are as sigma, alpha, alpha^2 + sigma^2 and
    alpha sigma' - sigma alpha'.

    Arguments:
        schedule: signal and noise over time
        prediction: what the network's output is
        weighting: of which quantity the loss is the mean squared error; None for the output's own
        variance: `posterior` for that of q(z_s | z_t, z_0) in every step; `learned` for one that
            the network gives in as many channels more, which ancestral sampling then uses and the
            loss `vlb` trains

    References:
        Ho et al. (2020), arXiv:2006.11239, eq. 4 to 7; Salimans and Ho (2022), arXiv:2202.00512;
        Lipman et al. (2023), Flow Matching for Generative Modeling, arXiv:2210.02747, for u;
        Nichol and Dhariwal (2021), arXiv:2102.09672, eq. 15, for the learned variance
    """

    path: ClassVar[str] = "gaussian"
    predicts: ClassVar[tuple[str, ...]] = ("x0", "eps", "v")
    prediction: Quantity = "v"
    weighting: Quantity | None = None
    variance: Literal["posterior", "learned"] = "posterior"

    def __post_init__(self) -> None:
        if self.prediction == "eps" and self.schedule.zero_terminal_snr:
            raise ValueError(
                "prediction eps does not go with zero_terminal_snr: at t = 1 the state is all "
                "noise, so that eps says nothing about z_0; use v or x0."
            )

    def prior(self, noise: State) -> State:
        """N(0, alpha^2 + sigma^2), the law of z_1 of states of unit variance."""
        total = power(*self.schedule(noise.new_ones(len(noise), dtype=torch.float64)))
        return per_sample(total.sqrt(), noise) * noise

    def corrupt(self, z_0: State, t: Level, noise: State) -> State:
        alpha, sigma = self.schedule(t)
        return per_sample(alpha, z_0) * z_0 + per_sample(sigma, z_0) * noise

    def renoise(self, z_s: State, s: Level, t: Level, noise: State) -> State:
        ratio, spread = self.schedule.transition(s, t)
        return per_sample(ratio, z_s) * z_s + per_sample(spread.sqrt(), z_s) * noise

    def outputs(self, k: int) -> int:
        return 2 * k if self.variance == "learned" else k

    def predict(self, output: Float[Tensor, "b o d h w"], z_t: State, t: Level) -> Prediction:
        if self.variance == "learned":
            mean, spread = output.chunk(2, dim=1)
            return replace(self._read(mean, z_t, t), spread=(1 + spread) / 2)
        return self._read(output, z_t, t)

    def _read(self, output: State, z_t: State, t: Level) -> Prediction:
        """The part of the output that is about the mean."""
        alpha, sigma = self.schedule(t)
        if self.prediction == "eps":
            return Prediction.from_eps(output, z_t, alpha, sigma)
        if self.prediction == "x0":
            return Prediction.from_x0(output, z_t, alpha, sigma)
        if self.prediction == "u":
            return Prediction.from_u(output, z_t, (alpha, sigma), self.schedule.rates(t))
        return Prediction.from_v(output, z_t, alpha, sigma)

    def posterior(self, z_0: State, z_t: State, t: Level, s: Level) -> tuple[State, Level]:
        """Mean of q(z_s | z_t, z_0) and its standard deviation, for any s < t."""
        ratio, spread = self.schedule.transition(s, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self.schedule(t), self.schedule(s)
        of_z_t = ratio * (sigma_s / sigma_t).square()
        of_z_0 = alpha_s - alpha_t * of_z_t  # the same as above, and exactly 1 at s = 0
        mean = per_sample(of_z_0, z_t) * z_0 + per_sample(of_z_t, z_t) * z_t
        return mean, spread.sqrt() * sigma_s / sigma_t

    def step(self, prediction: Prediction, z_t: State, t: Level, s: Level, noise: State) -> State:
        mean, deviation = self.posterior(prediction.x0, z_t, t, s)
        if prediction.spread is not None:
            return mean + self.deviation(prediction.spread, t, s) * noise
        return mean + per_sample(deviation, z_t) * noise

    def deviation(self, spread: State, t: Level, s: Level) -> State:
        """Standard deviation of a step from t to s with a learned variance, per state voxel."""
        _, b = self.schedule.transition(s, t)
        shrink = per_sample(self.schedule(s)[1] / self.schedule(t)[1], spread)
        return per_sample(b.sqrt(), spread) * shrink ** (1 - spread)

    def target(self, z_0: State, t: Level, noise: State) -> State:
        """What the network's output is compared with."""
        alpha, sigma = self.schedule(t)
        if self.prediction == "eps":
            return noise
        if self.prediction == "x0":
            return z_0
        if self.prediction == "u":
            d_alpha, d_sigma = self.schedule.rates(t)
            return per_sample(d_alpha, z_0) * z_0 + per_sample(d_sigma, z_0) * noise
        return per_sample(alpha, z_0) * noise - per_sample(sigma, z_0) * z_0

    def loss(
        self,
        output: Float[Tensor, "b o d h w"],
        z_0: State,
        z_t: State,
        t: Level,
        noise: State,
    ) -> Level:
        if self.variance == "learned":
            output = output[:, : z_0.shape[1]]
        alpha, sigma = self.schedule(t)
        target = self.target(z_0, t, noise)
        dtype = torch.promote_types(output.dtype, torch.float32)
        errors = (output.to(dtype) - target.to(dtype)).square().flatten(1).mean(1)
        if self.weighting is None:
            return errors
        factor = {"eps": alpha, "x0": sigma, "v": power(alpha, sigma)}
        if "u" in (self.weighting, self.prediction):
            factor["u"] = turning((alpha, sigma), self.schedule.rates(t))
        weight = (factor[self.weighting] / factor[self.prediction]).square()
        return errors * weight.to(dtype)
