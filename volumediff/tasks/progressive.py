r"""Progressive distillation: one step of the student is two of its teacher's, round after round,

.. math:: z_{t'} = \text{step}_\eta(z_t), \quad z_{t''} = \text{step}_\eta(z_{t'}), \qquad
          \tilde x = \frac{z_{t''} - (\sigma_{t''} / \sigma_t)\, z_t}
          {\alpha_{t''} - (\sigma_{t''} / \sigma_t)\, \alpha_t}, \qquad
          \ell = \max(\mathrm{SNR}_t, 1)\, \overline{\|\tilde x - \hat x_\theta(z_t, t)\|^2},

with t' = t - 1 / 2N and t'' = t - 1 / N, neither below 0, for a student of N steps. At the end of
a round the student becomes the teacher of the next one, of half as many steps.

Every time t is trained, not the grid from t = 1 alone, so that walks may begin anywhere:
localization starts from partly noisy volumes.

References:
    Salimans and Ho (2022), Progressive Distillation for Fast Sampling of Diffusion Models,
    arXiv:2202.00512, algorithm 2 and appendix G
"""

from collections.abc import Mapping
from typing import Annotated

import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor

from volumediff.batch import Batch, NoisyBatch
from volumediff.memory.shares import whole_tensor
from volumediff.samplers.spans import Spans
from volumediff.schedules._base import Schedule, per_sample
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Section
from volumediff.tasks._student import (
    StudentConfig,
    StudentTask,
    distance,
    euler_step,
    truncated_snr,
)

__all__ = ["ProgressiveConfig", "ProgressiveTask", "leap"]

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]


class ProgressiveSection(Section):
    """In how many steps the student walks from t = 1 to 0, and how it gets there.

    Every round halves the steps of the teacher; the last round takes all updates that are left.

    Arguments:
        steps: steps of the finished student
        from_steps: steps in which the teacher is walked at first: `steps` times a power of 2
        round_steps: updates of one round
    """

    steps: PositiveInt = 1
    from_steps: Annotated[int, Field(ge=2)] = 64
    round_steps: PositiveInt = 5000

    @model_validator(mode="after")
    def _halvings(self) -> "ProgressiveSection":
        if self.steps * 2**self.rounds != self.from_steps or self.rounds < 1:
            raise ValueError(
                f"takes from_steps = steps times 2, 4, 8, ..., got {self.from_steps} and "
                f"{self.steps}"
            )
        return self

    @property
    def rounds(self) -> int:
        """Number of halvings."""
        return (self.from_steps // self.steps).bit_length() - 1


class ProgressiveConfig(StudentConfig):
    """Keys of a student that is distilled progressively.

    Arguments:
        student: in how many steps the student is walked, and how it gets there
    """

    student: ProgressiveSection = ProgressiveSection()

    @model_validator(mode="after")
    def _long_enough(self) -> "ProgressiveConfig":
        least = self.student.rounds * self.student.round_steps
        if self.optim.steps < least:
            raise ValueError(
                f"takes optim.steps of at least {least}, {self.student.rounds} rounds of "
                f"student.round_steps {self.student.round_steps}, got {self.optim.steps}"
            )
        return self


class ProgressiveTask(StudentTask):
    """A student of half as many steps as its teacher, in rounds."""

    schema = ProgressiveConfig
    config: ProgressiveConfig
    round = 0

    @classmethod
    def walk(cls, config: RunConfig) -> Spans:
        return Spans(config.student.steps)

    @property
    def steps(self) -> int:
        """Of the student in this round, from t = 1 to 0."""
        return self.config.student.from_steps // 2 ** (self.round + 1)

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        seen = self._seen.corrupted(batch)
        with torch.no_grad():
            target = self._target(seen)
        said = self._seen.denoise(seen.z_t, seen.t, seen.condition).x0
        return truncated_snr(seen).to(said) * distance(said, target, seen.m)

    def _target(self, seen: NoisyBatch) -> State:
        """What the student is to predict, so that its step ends where two of the teacher's do."""
        teacher, spans = self.teacher, Spans(2 * self.steps)
        condition = teacher.prepared(seen.condition)
        middle = spans.ahead(seen.t)
        end = spans.ahead(middle)
        z = seen.z_t
        for t, s in ((seen.t, middle), (middle, end)):
            z = euler_step(teacher.denoise, seen.kernel, z, t, s, condition)
        return leap(seen.kernel.schedule, seen.z_t, z, seen.t, end)

    # Rounds

    def stepped(self, step: int, accelerator: Accelerator) -> None:
        """The student becomes the teacher of the next round."""
        section = self.config.student
        number, within = divmod(step, section.round_steps)
        if within == 0 and 0 < number < section.rounds:
            self.round = number
            weights = self.model.network.state_dict()
            whole = {name: whole_tensor(tensor) for name, tensor in weights.items()}
            self.training_only["teacher"].load_state_dict(whole)

    def training_state(self) -> dict[str, Tensor]:
        """The teacher of a later round, which is kept nowhere else."""
        return dict(self.training_only["teacher"].state_dict()) if self.round else {}

    def resume_training(self, step: int, tensors: Mapping[str, Tensor]) -> None:
        section = self.config.student
        self.round = min(step // section.round_steps, section.rounds - 1)
        if self.round:
            self.training_only["teacher"].load_state_dict(tensors)


def leap(schedule: Schedule, z_t: State, z_s: State, t: Level, s: Level) -> State:
    """The clean state whose first-order step leads from z_t to z_s, for s < t per sample."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule(t), schedule(s)
    ratio = sigma_s / sigma_t
    rest = z_s - per_sample(ratio, z_t) * z_t
    return rest / per_sample(alpha_s - ratio * alpha_t, z_t)
