r"""Multistep consistency sampling: leap to the clean state, then back to less noise, and again,

.. math:: \hat z_0 = f(z_t, t), \qquad z_s = \alpha_s \hat z_0 + \sigma_s \epsilon',

with f the end of the probability-flow path through z_t, which a consistency model predicts. One
step is a leap alone and draws nothing.
"""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.samplers._base import Memory, Sampler, Step

__all__ = ["ConsistencySteps"]


@dataclass(frozen=True)
class ConsistencySteps(Sampler):
    """Leaps of a consistency model, one evaluation and, but for the last, one draw each.

    References:
        Song et al. (2023), Consistency Models, arXiv:2303.01469, algorithm 1
    """

    through_means: ClassVar[bool] = False
    through_ends: ClassVar[bool] = True
    reads: ClassVar[tuple[str, ...]] = ("x0",)

    def admits(self, other: Sampler) -> bool:
        """Any number of leaps: a consistency model leaps from every time."""
        return isinstance(other, ConsistencySteps)

    def step(self, step: Step) -> tuple[Float[Tensor, "b k d h w"], Memory]:
        x0 = step.prediction.x0
        return (x0 if step.last else step.kernel.corrupt(x0, step.s, step.noise())), ()
