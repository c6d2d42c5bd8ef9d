r"""UniPC: predictor and corrector of one form, multistep in the half log-SNR lambda,

.. math:: z_s = \frac{\sigma_s}{\sigma_t} z_t - \alpha_s (e^{-h} - 1)\, \hat z_0(t)
          - \alpha_s B \sum_i \rho_i \frac{\hat z_0(t_i) - \hat z_0(t)}{r_i}, \qquad
          h = \lambda_s - \lambda_t, \quad r_i = \frac{\lambda_{t_i} - \lambda_t}{h},

where the predictor takes earlier times t_i, and the corrector s itself, too (r = 1): it mends z_s
once the prediction there is known, at no evaluation more. With rho such that polynomials in lambda
are integrated exactly,

.. math:: \sum_i \rho_i r_i^{k - 1} = \frac{k!\, \varphi_k}{B}, \qquad
          \varphi_0 = e^{-h} - 1, \quad
          \varphi_k = \frac{\varphi_{k - 1}}{-h} - \frac{1}{k!};

a single one is 1/2. The step to s = 0 ends on the predicted clean state. There is no correction
after a step from a zero terminal SNR, whose h is infinite.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.samplers._base import Memory, Sampler, Step
from volumediff.samplers._transfer import along_x0
from volumediff.schedules._base import Schedule, per_sample

__all__ = ["UniPC"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]
# In place of an infinite half log-SNR: so far off that nothing is taken from there.
FAR = 1e4


@dataclass(frozen=True)
class UniPC(Sampler):
    """Second or third order, one evaluation per step; keeps a state and earlier clean states.

    The first steps, which have fewer predictions, are of lower order.

    Arguments:
        order: p, of predictor and corrector alone; together they are of order p + 1
        solver: B: -h for bh1, e^{-h} - 1 for bh2

    References:
        Zhao et al. (2023), UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of
        Diffusion Models, arXiv:2302.04867, algorithms 5 to 8, on the clean state
    """

    reads: ClassVar[tuple[str, ...]] = ("x0",)
    _: KW_ONLY
    order: Literal[2, 3] = 2
    solver: Literal["bh1", "bh2"] = "bh2"

    def step(self, step: Step) -> tuple[State, Memory]:
        schedule, x0, z_t = step.kernel.schedule, step.prediction.x0, step.z_t
        earlier: Memory = ()
        if step.memory:
            # where the last step began, with its state, then with its and earlier clean states
            (before, z_r), *earlier = step.memory
            z_t = self._step(schedule, z_r, before, step.t, tuple(earlier), ahead=x0)
        outputs = ((step.t, x0), *earlier)[: self.order]
        if step.last:
            return along_x0(schedule, z_t, x0, step.t, step.s), ()
        z_s = self._step(schedule, z_t, step.t, step.s, outputs)
        return z_s, ((step.t, z_t), *outputs)

    def _step(
        self,
        schedule: Schedule,
        z_t: State,
        t: Level,
        s: Level,
        outputs: Memory,
        *,
        ahead: State | None = None,
    ) -> State:
        """z_s from z_t, with the clean state predicted at s where it is known.

        Arguments:
            outputs: times and clean states, that of t first
        """
        (_, x0), *earlier = outputs
        now, h = (
            _half_log_snr(schedule, t),
            _half_log_snr(schedule, s) - _half_log_snr(schedule, t),
        )
        places = [(_half_log_snr(schedule, r) - now) / h for r, _ in earlier]
        others = [x for _, x in earlier]
        if ahead is not None:
            places, others = [*places, torch.ones_like(h)], [*others, ahead]
        total = torch.zeros_like(x0)
        factor = -h if self.solver == "bh1" else torch.expm1(-h)
        # nothing bends a step that comes from an infinite log-SNR
        bent = torch.where(now > -FAR, factor, 0.0)
        for rho, r, x in zip(_weights(places, h, factor), places, others, strict=True):
            total = total + per_sample(bent * rho / r, x) * (x - x0)
        return along_x0(schedule, z_t, x0, t, s) - per_sample(schedule(s)[0], total) * total


def _half_log_snr(schedule: Schedule, t: Level) -> Level:
    return (schedule.log_snr(t) / 2).clamp(-FAR, FAR)


def _weights(places: list[Level], h: Level, factor: Level) -> list[Level]:
    """rho of each place r_i."""
    n = len(places)
    if n < 2:
        return [torch.full_like(h, 0.5)] * n
    phi, wanted = torch.expm1(-h), []
    for k in range(1, n + 1):
        phi = phi / -h - 1 / math.factorial(k)
        wanted.append(math.factorial(k) * phi / factor)
    powers = torch.stack([torch.stack(places, 1) ** k for k in range(n)], 1)  # b k i
    return list(torch.linalg.solve(powers, torch.stack(wanted, 1)).unbind(1))
