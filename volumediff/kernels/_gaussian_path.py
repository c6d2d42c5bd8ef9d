r"""Gaussian path: the corruption and the posterior of every signal and noise,

.. math:: q(z_t | z_0) &= N(\alpha_t z_0, \sigma_t^2), \qquad
          g = \alpha_t / \alpha_s, \quad b = \sigma_t^2 - g^2 \sigma_s^2, \\
          q(z_t | z_s) &= N(g z_s,\; b), \\
          q(z_s | z_t, z_0) &= N\!\Big(\frac{\alpha_s b}{\sigma_t^2} z_0 +
          \frac{g\, \sigma_s^2}{\sigma_t^2} z_t,\; b \frac{\sigma_s^2}{\sigma_t^2}\Big),

with b = 1 - g^2 where the schedule preserves variance. A learned variance is

.. math:: b\, \Big(\frac{\sigma_s^2}{\sigma_t^2}\Big)^{1 - r}
          \Big(\frac{\alpha_s^2 + \sigma_s^2}{\alpha_t^2 + \sigma_t^2}\Big)^r, \qquad
          r = (1 + \text{output}) / 2,

which is that of q(z_s | z_t, z_0) at r = 0, right for data without spread, and at r = 1 right for
data of unit variance: b, where the schedule preserves variance.
"""

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel, Prediction
from volumediff.schedules._base import per_sample, power
from volumediff.weightings import Weighting

__all__ = ["GaussianPath"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]


@dataclass(frozen=True)
class GaussianPath(Kernel):
    """Gaussian noise; sub-classes say what the network's output is.

    The loss of a sample is the mean squared error of `weighting`, whatever the network gives.

    Arguments:
        schedule: signal and noise over time
        weighting: of which error the loss is the mean square; None for that of the output
        variance: `posterior` for that of q(z_s | z_t, z_0) in every step; `learned` for one that
            the network gives in as many channels more, which ancestral sampling then uses and the
            loss `vlb` trains

    References:
        Ho et al. (2020), arXiv:2006.11239, eq. 4 to 7; Nichol and Dhariwal (2021),
        arXiv:2102.09672, eq. 15, for the learned variance
    """

    path: ClassVar[str] = "gaussian"
    predicts: ClassVar[tuple[str, ...]] = ("x0", "eps", "v")
    _: KW_ONLY
    weighting: Weighting | None = None
    variance: Literal["posterior", "learned"] = "posterior"

    @abstractmethod
    def read(self, output: State, z_t: State, t: Level) -> Prediction:
        """The part of the output that is about the mean."""

    @abstractmethod
    def target(self, z_0: State, t: Level, noise: State) -> State:
        """What that part is compared with."""

    @abstractmethod
    def size(self, t: Level) -> Level:
        """Its error, where that of x0 is sigma_t; see `volumediff.weightings`."""

    def prior(self, noise: State, start: float = 1.0) -> State:
        """N(0, alpha^2 + sigma^2), the law of z_t of states of unit variance."""
        t = noise.new_full((len(noise),), start, dtype=torch.float64)
        total = power(*self.schedule(t))
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
            return replace(self.read(mean, z_t, t), spread=(1 + spread) / 2)
        return self.read(output, z_t, t)

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
        now, then = self.schedule(t), self.schedule(s)
        without = per_sample(then[1] / now[1], spread)
        unit = per_sample((power(*then) / power(*now)).sqrt(), spread)
        return per_sample(b.sqrt(), spread) * without ** (1 - spread) * unit**spread

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
        dtype = torch.promote_types(output.dtype, torch.float32)
        # In one expression: of whole states, which processes do not share, none has a name that
        # keeps it, neither the target nor the difference before it is copied into rows.
        errors = (
            (output.to(dtype) - self.target(z_0, t, noise).to(dtype)).flatten(1).square().mean(1)
        )
        if self.weighting is None:
            return errors
        weight = (self.weighting.size(self.schedule, t) / self.size(t)).square()
        return errors * weight.to(dtype)
