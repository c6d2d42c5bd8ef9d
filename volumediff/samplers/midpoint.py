r"""Midpoint: the step with the prediction of its middle,

.. math:: \tilde z_m = \alpha_m \hat z_0 + \sigma_m \hat\epsilon, \quad m = \frac{t + s}{2}, \qquad
          z_s = z_t + (\alpha_s - \alpha_t)\, \hat z_0(\tilde z_m, m) +
          (\sigma_s - \sigma_t)\, \hat\epsilon(\tilde z_m, m),

which for a rectified flow is z_t + (s - t) u(m), the midpoint method of its velocity. No level is
divided by, so that both ends of the time are like all others.

Upwards the same is taken from predictions on the way up; iterations then solve for the state whose
downward step ends in z_s exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel, Prediction
from volumediff.samplers._base import InvertibleSampler, Memory, Step
from volumediff.samplers._transfer import euler
from volumediff.schedules._base import Schedule, per_sample

__all__ = ["Midpoint"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]


@dataclass(frozen=True)
class Midpoint(InvertibleSampler):
    """Second order, two evaluations per step (one where a hook changed the pair).

    References:
        Lipman et al. (2023), arXiv:2210.02747, sec. 6, for flows; Hairer et al. (1993), Solving
        Ordinary Differential Equations I, sec. II.1
    """

    between: ClassVar[bool] = True

    def step(self, step: Step) -> tuple[State, Memory]:
        schedule, t, s = step.kernel.schedule, step.t, step.s
        # A second prediction would not know what a hook did to the first.
        if step.replaced:
            return euler(schedule, step.prediction, s), ()
        middle = (t + s) / 2
        found = step.evaluate(euler(schedule, step.prediction, middle), middle)
        return _along(schedule, step.z_t, found, t, s), ()

    def ascend(
        self,
        evaluate: Callable[[Tensor, Tensor], Prediction],
        kernel: Kernel,
        z_s: State,
        s: Level,
        t: Level,
        iterations: int,
    ) -> State:
        schedule, middle = kernel.schedule, (t + s) / 2

        def ahead(found: Prediction) -> State:
            return _along(schedule, z_s, evaluate(euler(schedule, found, middle), middle), s, t)

        z_t = ahead(evaluate(z_s, s))
        for _ in range(iterations):
            z_t = ahead(evaluate(z_t, t))
        return z_t


def _along(schedule: Schedule, z_t: State, found: Prediction, t: Level, s: Level) -> State:
    """The state at s, from that at t, along one prediction for the whole way."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    of_x0, of_eps = per_sample(alpha_s - alpha_t, z_t), per_sample(sigma_s - sigma_t, z_t)
    return z_t + of_x0 * found.x0 + of_eps * found.eps
