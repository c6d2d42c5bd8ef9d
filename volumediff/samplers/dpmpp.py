r"""DPM-Solver++(2M): the clean state extrapolated in log-SNR from two steps,

.. math:: D = \hat z_0(t) + \frac{\lambda_s - \lambda_t}{2 (\lambda_t - \lambda_r)}
          \big(\hat z_0(t) - \hat z_0(r)\big), \qquad
          z_s = \frac{\sigma_s}{\sigma_t} z_t +
          \Big(\alpha_s - \alpha_t \frac{\sigma_s}{\sigma_t}\Big) D

with r > t the time before. First order are the first step and, since log-SNRs are infinite there,
the one after a zero terminal SNR and the last one, to s = 0.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.samplers._base import Memory, Sampler, Step
from volumediff.samplers._transfer import along_x0
from volumediff.schedules._base import per_sample

__all__ = ["DPMSolverPP"]


@dataclass(frozen=True)
class DPMSolverPP(Sampler):
    """Second order, one evaluation per step; keeps one earlier clean state.

    References:
        Lu et al. (2022), DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic
        Models, arXiv:2211.01095, algorithm 2
    """

    reads: ClassVar[tuple[str, ...]] = ("x0",)

    def step(self, step: Step) -> tuple[Float[Tensor, "b k d h w"], Memory]:
        schedule, x0, z_t = step.kernel.schedule, step.prediction.x0, step.z_t
        ahead = x0
        if step.memory and not step.last:
            ((before, x0_before),) = step.memory
            now = schedule.log_snr(step.t)
            reach = (schedule.log_snr(step.s) - now) / (2 * (now - schedule.log_snr(before)))
            ahead = x0 + per_sample(reach, x0) * (x0 - x0_before)
        z_s = along_x0(schedule, z_t, ahead, step.t, step.s)
        return z_s, ((step.t, x0),)
