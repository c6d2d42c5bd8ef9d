r"""DDIM: along the prediction, with any share of the noise drawn anew,

.. math:: z_s = \alpha_s \hat z_0 + \sqrt{\sigma_s^2 - \tilde\sigma^2}\, \hat\epsilon +
          \tilde\sigma \epsilon', \qquad
          \tilde\sigma = \eta\, \frac{\sigma_s}{\sigma_t}
          \sqrt{\sigma_t^2 - \sigma_s^2 \alpha_t^2 / \alpha_s^2},

whose root is sqrt(1 - alpha_t^2 / alpha_s^2) where the schedule preserves variance.
eta = 0 is the first-order solver of the probability-flow equation, eta = 1 ancestral sampling.
Upwards,

.. math:: z_t = \frac{\alpha_t}{\alpha_s} (z_s - \sigma_s e) + \sigma_t e,

with e = eps(z_s, s) first, and then e = eps(z_t, t), repeated: the fixed point is the state whose
downward step ends in z_s exactly.
"""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel, Prediction
from volumediff.samplers._base import InvertibleSampler, Memory, Step
from volumediff.samplers._transfer import along_eps, euler
from volumediff.schedules._base import per_sample

__all__ = ["DDIM"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]


@dataclass(frozen=True)
class DDIM(InvertibleSampler):
    """First order, one evaluation per step.

    Arguments:
        eta: share of fresh noise in [0, 1]

    References:
        Song et al. (2021), Denoising Diffusion Implicit Models, arXiv:2010.02502, eq. 12 and 16
    """

    _: KW_ONLY
    eta: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"expected eta in [0, 1], got {self.eta}.")

    @property
    def invertible(self) -> bool:
        """Only the deterministic one has an inverse."""
        return self.eta == 0

    def step(self, step: Step) -> tuple[State, Memory]:
        schedule, x0, eps = step.kernel.schedule, step.prediction.x0, step.prediction.eps
        if self.eta == 0 or step.last:
            return euler(schedule, step.prediction, step.s), ()
        _, sigma_t = schedule(step.t)
        alpha_s, sigma_s = schedule(step.s)
        _, spread = schedule.transition(step.s, step.t)
        fresh = self.eta * sigma_s / sigma_t * spread.sqrt()
        kept = (sigma_s.square() - fresh.square()).clamp(min=0).sqrt()
        path = per_sample(alpha_s, x0) * x0 + per_sample(kept, eps) * eps
        return path + per_sample(fresh, eps) * step.noise(), ()

    def ascend(
        self,
        evaluate: Callable[[Tensor, Tensor], Prediction],
        kernel: Kernel,
        z_s: State,
        s: Level,
        t: Level,
        iterations: int,
    ) -> State:
        if self.eta != 0:
            raise ValueError(f"only the deterministic DDIM has an inverse, got eta {self.eta}.")
        z_t = along_eps(kernel.schedule, z_s, evaluate(z_s, s).eps, s, t)
        for _ in range(iterations):
            z_t = along_eps(kernel.schedule, z_s, evaluate(z_t, t).eps, s, t)
        return z_t
