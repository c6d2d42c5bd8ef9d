r"""Heun: the noise averaged over both ends of a step,

.. math:: \tilde z_s = \alpha_s \hat z_0 + \sigma_s \hat\epsilon, \qquad
          e = (1 - w)\, \hat\epsilon(z_t, t) + w\, \hat\epsilon(\tilde z_s, s), \qquad
          z_s = \frac{\alpha_s}{\alpha_t} (z_t - \sigma_t e) + \sigma_s e,

which for w = 1/2 is Heun's method for z / alpha over S = sigma / alpha. There a long step from a
low SNR multiplies errors by S_t / S_s: with the cosine schedule and 50 steps the global mean of a
volume comes out a hundredfold too large. Hence the weight is

.. math:: w = \tfrac12 \min\Big(1, \frac{r}{1 - r}\Big), \qquad r = S_s / S_t,

that is 1/2 unless the step more than halves S, and never a change of z_s by more than half of what
eps changes. The step to s = 0, where w = 0, ends on the predicted clean state.

Upwards the same e is taken, from predictions at z_s and at an Euler step; iterations then solve
for the state whose downward step ends in z_s exactly.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.kernels._base import Kernel, Prediction
from volumediff.samplers._base import InvertibleSampler, Memory, Step
from volumediff.samplers._transfer import along_eps, averaged, euler, share
from volumediff.schedules._base import per_sample

__all__ = ["Heun"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]


@dataclass(frozen=True)
class Heun(InvertibleSampler):
    """Second order, two evaluations per step (one in the last, and where a hook changed the pair).

    References:
        Karras et al. (2022), Elucidating the Design Space of Diffusion-Based Generative Models,
        arXiv:2206.00364, algorithm 1; the limit of the weight is ours
    """

    def step(self, step: Step) -> tuple[State, Memory]:
        schedule = step.kernel.schedule
        first = euler(schedule, step.prediction, step.s)
        # A second prediction would not know what a hook did to the first.
        if step.last or step.replaced:
            return first, ()
        below = step.evaluate(first, step.s)
        return averaged(schedule, step.prediction, below, step.t, step.s), ()

    def ascend(
        self,
        evaluate: Callable[[Tensor, Tensor], Prediction],
        kernel: Kernel,
        z_s: State,
        s: Level,
        t: Level,
        iterations: int,
    ) -> State:
        schedule = kernel.schedule
        weight = per_sample(share(schedule, t, s), z_s)
        lower = evaluate(z_s, s).eps
        upper = evaluate(along_eps(schedule, z_s, lower, s, t), t).eps
        z_t = along_eps(schedule, z_s, torch.lerp(upper, lower, weight), s, t)
        for _ in range(iterations):
            found = evaluate(z_t, t)
            lower = evaluate(euler(schedule, found, s), s).eps
            z_t = along_eps(schedule, z_s, torch.lerp(found.eps, lower, weight), s, t)
        return z_t
