r"""Spans: first-order steps of one length, wherever the walk begins,

.. math:: t_k = t_0 - k / N, \qquad z_s = \alpha_s \hat z_0 + \sigma_s \hat\epsilon,

and a shorter one to t = 0 last. A walk from the start t_0 takes ceil(t_0 N) steps: N from t = 1,
half of them from t = 1/2. It is how students of N steps are walked, which know one length of step
and any time to begin at.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.component import handed_in
from volumediff.samplers._base import Memory, Sampler, Step
from volumediff.samplers._span_times import span_ends, span_times
from volumediff.samplers._transfer import euler
from volumediff.schedules._base import Schedule
from volumediff.time_grids import TimeGrid, UniformTimeGrid

__all__ = ["Spans"]


@dataclass(frozen=True)
class Spans(Sampler):
    """Deterministic steps of length 1 / N in time, one evaluation each.

    Arguments:
        steps: N, number of steps from t = 1 to 0

    References:
        Song et al. (2021), arXiv:2010.02502, eq. 12 with eta 0; Salimans and Ho (2022),
        Progressive Distillation for Fast Sampling of Diffusion Models, arXiv:2202.00512, appendix
        B, where walks begin at t = 1
    """

    through_means: ClassVar[bool] = False
    grid: TimeGrid = handed_in(UniformTimeGrid())

    def admits(self, other: Sampler) -> bool:
        """Only these spans: a network that was distilled for them leaps so far and no less."""
        return other == self

    def times(self, schedule: Schedule, start: float = 1.0) -> Float[Tensor, "n"]:
        """`start`, then ever 1 / N less, and 0 last."""
        return span_times(self.steps, start=start)

    def ahead(self, t: Float[Tensor, "b"]) -> Float[Tensor, "b"]:
        """Where the steps from some times end."""
        return span_ends(t, self.steps)

    def step(self, step: Step) -> tuple[Float[Tensor, "b k d h w"], Memory]:
        return euler(step.kernel.schedule, step.prediction, step.s), ()
