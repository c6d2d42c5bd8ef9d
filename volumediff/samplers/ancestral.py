r"""Ancestral sampling: a draw from the posterior at the predicted clean state,

.. math:: z_s \sim q(z_s | z_t, \hat z_0).
"""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.samplers._base import Memory, Sampler, Step
from volumediff.schedules._base import per_sample, power

__all__ = ["Ancestral"]


@dataclass(frozen=True)
class Ancestral(Sampler):
    r"""Exact posterior of the kernel, with the predicted clean state in the place of the true one.

    The posterior's variance is right for data without spread, the forward variance (1 - a, where
    the schedule preserves variance) for data of unit variance; `variance` r gives the geometric
    mean of the two with weights 1 - r and r. There is no noise at s = 0. With r = 0 the step is
    the kernel's own, so that it walks any: for cold ones that is algorithm 2 of cold diffusion.

    Arguments:
        variance: r in [0, 1]; 0 is the posterior's variance (beta tilde), 1 the forward one (beta)
        mean: whether a chain ends on the predicted mean of the clean state; it does anyway but for
            discrete states, where the mean holds the probabilities, and a draw is the likeliest

    References:
        Ho et al. (2020), arXiv:2006.11239, sec. 3.2; Nichol and Dhariwal (2021), arXiv:2102.09672,
        eq. 15, for the geometric mean
    """

    reads: ClassVar[tuple[str, ...]] = ("x0",)
    _: KW_ONLY
    variance: float = 0.0
    mean: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.variance <= 1:
            raise ValueError(f"expected variance in [0, 1], got {self.variance}.")

    @property
    def paths(self) -> tuple[str, ...] | None:
        """Only Gaussian noise has a variance to choose."""
        return None if self.variance == 0 else ("gaussian",)

    def step(self, step: Step) -> tuple[Float[Tensor, "b k d h w"], Memory]:
        if self.variance > 0 and step.prediction.spread is not None:
            raise ValueError(
                f"variance: expected 0 for a kernel that learned its own, got {self.variance}."
            )
        if step.last and self.mean:
            return step.prediction.x0, ()
        if step.kernel.tied:
            noise = step.first()
        elif step.last:
            noise = torch.zeros_like(step.z_t)
        else:
            noise = step.noise()
        if self.variance > 0 and not step.last:
            # forward / posterior variance = sigma_t^2 / sigma_s^2, in units of unit variance
            now, then = step.kernel.schedule(step.t), step.kernel.schedule(step.s)
            ratio = now[1] / then[1] * (power(*then) / power(*now)).sqrt()
            noise = per_sample(ratio**self.variance, noise) * noise
        return step.kernel.step(step.prediction, step.z_t, step.t, step.s, noise), ()
