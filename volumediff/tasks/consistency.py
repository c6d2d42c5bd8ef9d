r"""Consistency distillation: from every time of a path of the teacher the student sees its end,

.. math:: z_s = \text{step}_\eta(z_t), \qquad
          \ell = \sqrt{\overline{\|f_\theta(z_t, t) - f_{\bar\theta}(z_s, s)\|^2} + c^2} - c,
          \qquad f(z_0, 0) = z_0,

with s = t - 1 / N, not below 0, the first-order step of the teacher, and no gradient through the
second call. Its weights are those of the student, or an average of them that follows every update.
The loss is the pseudo-Huber distance in units of the root of the number of variables, so that
volumes of any size have losses of one size.

The student leaps from any noisy state to the end in one step, or takes more steps and gets better
(`ConsistencySteps`). What it reaches at best is the teacher walked in N steps.

References:
    Song et al. (2023), Consistency Models, arXiv:2303.01469, algorithm 2
    Song and Dhariwal (2024), Improved Techniques for Training Consistency Models,
    arXiv:2310.14189: the pseudo-Huber distance with c = 0.00054, and no average
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor

from volumediff.batch import Batch, NoisyBatch
from volumediff.memory.shares import whole_tensor
from volumediff.model import Model
from volumediff.samplers.consistency import ConsistencySteps
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Section
from volumediff.tasks._student import StudentConfig, StudentTask, distance, euler_step

__all__ = ["ConsistencyConfig", "ConsistencyTask"]

TARGET = "target"


class ConsistencySection(Section):
    """How the student is walked and what it learns from.

    Arguments:
        steps: leaps of the student's own walk; others may be asked for later
        from_steps: steps in which the teacher is walked
        target_ema: decay rate of the average that the student is compared with; 0 takes the
            student itself
        huber: constant c of the pseudo-Huber distance
    """

    steps: PositiveInt = 1
    from_steps: Annotated[int, Field(ge=2)] = 64
    target_ema: Annotated[float, Field(ge=0, lt=1)] = 0.95
    huber: PositiveFloat = 0.00054


class ConsistencyConfig(StudentConfig):
    """Keys of a consistency model that is distilled.

    Arguments:
        student: how the student is walked and what it learns from
    """

    student: ConsistencySection = ConsistencySection()


class ConsistencyTask(StudentTask):
    """A consistency model of the paths of its teacher."""

    schema = ConsistencyConfig
    noun = "a consistency model"
    config: ConsistencyConfig

    @classmethod
    def walk(cls, config: RunConfig) -> ConsistencySteps:
        return ConsistencySteps(config.student.steps)

    def begin_training(self, run: Path | None, *, fresh: bool) -> None:
        """The teacher and, where the target is an average, another network for that."""
        super().begin_training(run, fresh=fresh)
        if self.config.student.target_ema > 0:
            self.training_only[TARGET] = self._original().network

    @property
    def _compared(self) -> Model:
        """The model that says where the student should have come to."""
        if TARGET in self.training_only:
            return self._seen.with_network(self.training_only[TARGET])
        return self._seen

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        seen = self._seen.corrupted(batch)
        with torch.no_grad():
            target = self._target(seen)
        said = self._seen.denoise(seen.z_t, seen.t, seen.condition).x0
        c = self.config.student.huber
        return (distance(said, target, seen.m) + c**2).sqrt() - c

    def _target(self, seen: NoisyBatch) -> Float[Tensor, "b k d h w"]:
        """The end of the path, as it is seen one step of the teacher further down."""
        s = self.teacher_walk.ahead(seen.t)
        denoise, compared = self.teacher.denoise, self._compared
        z_s = euler_step(denoise, seen.kernel, seen.z_t, seen.t, s, seen.condition)
        ended = s == 0
        # a state without noise is its own end, and no network is asked there
        end = compared.denoise(z_s, torch.where(ended, seen.t, s), seen.condition).x0
        return torch.where(ended[:, None, None, None, None], z_s, end)

    # The average

    @torch.no_grad()
    def stepped(self, step: int, accelerator: Accelerator) -> None:
        """The average follows the student."""
        if TARGET not in self.training_only:
            return
        averages = list(self.training_only[TARGET].parameters())
        weights = [whole_tensor(p.detach()) for p in self.model.network.parameters()]
        torch._foreach_lerp_(averages, weights, 1 - self.config.student.target_ema)

    def training_state(self) -> dict[str, Tensor]:
        """The average, which is kept nowhere else."""
        target = self.training_only[TARGET] if TARGET in self.training_only else None
        return {} if target is None else dict(target.state_dict())

    def resume_training(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        if TARGET in self.training_only:
            self.training_only[TARGET].load_state_dict(tensors)
