r"""PLMS: the prediction extrapolated from up to four steps by Adams-Bashforth weights,

.. math:: e_1 &= (3 \hat\epsilon_0 - \hat\epsilon_1) / 2, \\
          e_2 &= (23 \hat\epsilon_0 - 16 \hat\epsilon_1 + 5 \hat\epsilon_2) / 12, \\
          e_3 &= (55 \hat\epsilon_0 - 59 \hat\epsilon_1 + 37 \hat\epsilon_2
          - 9 \hat\epsilon_3) / 24, \\
          z_s &= \frac{\alpha_s}{\alpha_t} (z_t - \sigma_t e) + \sigma_s e,

index 0 the newest. The first step, which has no history, is a step of `heun`.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.samplers._base import Memory, Sampler, Step
from volumediff.samplers._transfer import along_eps, averaged, euler

__all__ = ["PLMS"]

# Weights of the newest and of the earlier predictions, by the number of earlier ones.
WEIGHTS = {
    1: (3 / 2, -1 / 2),
    2: (23 / 12, -16 / 12, 5 / 12),
    3: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


@dataclass(frozen=True)
class PLMS(Sampler):
    """Second order, one evaluation per step (two in the first); keeps three earlier predictions.

    The weights are of fourth order for equal steps of sigma / alpha, which no grid in use has.

    References:
        Liu et al. (2022), Pseudo Numerical Methods for Diffusion Models on Manifolds,
        arXiv:2202.09778, eq. 12
    """

    def step(self, step: Step) -> tuple[Float[Tensor, "b k d h w"], Memory]:
        schedule, z_t, newest = step.kernel.schedule, step.z_t, step.prediction.eps
        earlier = [eps for _, eps in step.memory]
        memory = ((step.t, newest), *step.memory)[: max(WEIGHTS)]
        # What a hook asks of z_0 holds exactly in the end.
        if earlier and not (step.last and step.replaced):
            first, *others = WEIGHTS[len(earlier)]
            eps = sum((w * e for w, e in zip(others, earlier, strict=True)), first * newest)
            return along_eps(schedule, z_t, eps, step.t, step.s), memory
        z_s = euler(schedule, step.prediction, step.s)
        if not (earlier or step.last or step.replaced):
            below = step.evaluate(z_s, step.s)
            z_s = averaged(schedule, step.prediction, below, step.t, step.s)
        return z_s, memory
