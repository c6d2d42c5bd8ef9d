r"""Posterior spans: large steps that draw from the kernel's posterior at a drawn clean state,

.. math:: t_k = t_0 - k / T, \qquad z_s \sim q(z_s | z_t, \hat z_0), \qquad
          \hat z_0 = G(z_t, t, \zeta),

and a shorter one to t = 0 last, from any t_0. It is how denoising diffusion GANs of T steps are
walked.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.component import handed_in
from volumediff.samplers._base import Memory, Sampler, Step
from volumediff.samplers._span_times import span_times
from volumediff.schedules._base import Schedule
from volumediff.time_grids import TimeGrid, UniformTimeGrid

__all__ = ["PosteriorSpans"]


@dataclass(frozen=True)
class PosteriorSpans(Sampler):
    """Steps of length 1 / T in time, one evaluation and one draw each.

    Arguments:
        steps: T, number of steps from t = 1 to 0

    References:
        Xiao et al. (2022), arXiv:2112.07804, eq. 5
    """

    through_means: ClassVar[bool] = False
    grid: TimeGrid = handed_in(UniformTimeGrid())

    def admits(self, other: Sampler) -> bool:
        """Only these spans: the network draws steps of one length."""
        return other == self

    def times(self, schedule: Schedule, start: float = 1.0) -> Float[Tensor, "n"]:
        """`start`, then ever 1 / T less, and 0 last."""
        return span_times(self.steps, start=start)

    def step(self, step: Step) -> tuple[Float[Tensor, "b k d h w"], Memory]:
        noise = torch.zeros_like(step.z_t) if step.last else step.noise()
        return step.kernel.step(step.prediction, step.z_t, step.t, step.s, noise), ()
