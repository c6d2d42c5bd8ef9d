r"""Guided distillation: one call of the student is two of its teacher's, for any weight,

.. math:: w \sim U(w_0, w_1), \qquad
          \tilde x = \hat x_\eta(z_t, \varnothing) + w\, (\hat x_\eta(z_t, c) -
          \hat x_\eta(z_t, \varnothing)), \qquad
          \ell = \max(\mathrm{SNR}_t, 1)\, \overline{\|\tilde x - \hat x_\theta(z_t, c, w)\|^2},

with the weight in the embedding of the student (`guidance: {name: embedded, weight: 3}`). It is
walked as its teacher is, by any sampler, and may be the teacher of a student of few steps, which
then is told the weight as well.

References:
    Meng et al. (2023), On Distillation of Guided Diffusion Models, arXiv:2210.03142, algorithm 1;
    its w is ours minus 1
"""

from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor

from volumediff.batch import Batch
from volumediff.compatibility import require
from volumediff.compatibility.training import guided_problem
from volumediff.condition import Condition
from volumediff.errors import UsageError
from volumediff.kernels._base import Denoiser, Prediction
from volumediff.model import Model
from volumediff.samplers.dpmpp import DPMSolverPP
from volumediff.settings.run_config import RunConfig
from volumediff.tasks._student import StudentConfig, StudentTask, distance, truncated_snr

__all__ = ["GuidedConfig", "GuidedTask", "guided"]

STEPS = 20  # of the walks in which student and teacher are compared


class GuidedConfig(StudentConfig):
    """Keys of a student that is conditioned on the weight of the guidance.

    Arguments:
        guidance: least and greatest weight that is trained
    """

    guidance: tuple[float, float] = (1.0, 5.0)

    @model_validator(mode="after")
    def _an_interval(self) -> "GuidedConfig":
        low, high = self.guidance
        if not 0 <= low < high:
            raise ValueError(
                f"takes guidance: [low, high] with 0 <= low < high, got {list(self.guidance)}"
            )
        return self


class GuidedTask(StudentTask):
    """A diffusion model that is guided in one call."""

    schema: ClassVar[type[RunConfig]] = GuidedConfig
    noun = "a guided diffusion model"

    @classmethod
    def walk(cls, config: RunConfig) -> None:
        return None

    @property
    def teacher_walk(self) -> DPMSolverPP:
        return DPMSolverPP(STEPS)

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "StudentTask":
        task = super().build(config, run)
        require(guided_problem(task.model.recipe), UsageError)
        return task

    @property
    def guided_teacher(self) -> bool:
        return False

    def denoiser(self, model: Model) -> Denoiser:
        """The student, or the teacher guided in two calls by the weight of each sample."""
        if model.guided is not None:
            return model.denoise
        return guided(model.denoise, classes=self.recipe.classes)

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        seen = self._seen.corrupted(batch)
        with torch.no_grad():
            target = self.denoiser(self.teacher)(seen.z_t, seen.t, seen.condition).x0
        said = self._seen.denoise(seen.z_t, seen.t, seen.condition).x0
        return truncated_snr(seen).to(said) * distance(said, target, seen.m)


def guided(denoise: Denoiser, *, classes: int) -> Denoiser:
    """A denoiser guided by the weights in its condition, which it is not told itself.

    Arguments:
        classes: of the network, the index of the null class
    """

    def two(z_t: Tensor, t: Tensor, condition: Condition) -> Prediction:
        weight = condition.guidance.to(z_t)[:, None, None, None, None]
        plain = condition.replace(guidance=None)
        null = plain.replace(label=torch.full_like(condition.label, classes))
        away, towards = denoise(z_t, t, null), denoise(z_t, t, plain)
        return Prediction(
            x0=torch.lerp(away.x0, towards.x0, weight),
            eps=torch.lerp(away.eps, towards.eps, weight),
            v=torch.lerp(away.v, towards.v, weight),
        )

    return two
