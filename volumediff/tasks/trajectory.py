"""Operator of trajectories: one call leads from noise to a whole trajectory of the teacher.

The student is the network of its teacher with a mixing of states over time in every level, see
`volumediff.trajectories`. It starts from noise at t = 1 alone: it draws volumes, and labels of an
image, and no method that begins at a partly noisy volume can use it.

The teacher's trajectories are walked for every training step, or computed once and kept on the
disk, where all that they depend on is noise.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor

from volumediff.batch import Batch
from volumediff.compatibility import require
from volumediff.compatibility.training import kept_problem, trajectory_problem
from volumediff.condition import Condition
from volumediff.errors import UsageError
from volumediff.model import LOSS, Model, state_noise
from volumediff.randomness import key
from volumediff.samplers._base import Sampler
from volumediff.samplers.ddim import DDIM
from volumediff.samplers.spans import Spans
from volumediff.samples.dataset import Samples, collate
from volumediff.samples.kept_trajectories import KeptTrajectories
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Section
from volumediff.storage.cache import Cache
from volumediff.tasks._student import StudentConfig, StudentTask
from volumediff.times.grid import GridTimes
from volumediff.trajectories import trajectory_loss, trajectory_steps, trajectory_times, walked

__all__ = ["TrajectoryConfig", "TrajectoryTask"]

State = Float[Tensor, "b k d h w"]
# All that the student knows is t = 1: nothing between here and there differs from noise.
FROM_NOISE = GridTimes(1, low=0.999999)


class TrajectorySection(Section):
    """What the student gives, and the trajectories that it learns from.

    Arguments:
        states: number M of states that one call gives
        modes: frequencies over time that are mixed
        teacher_steps: steps n of the teacher from t = 1 to 0, a multiple of M²
        kept: trajectories that are computed once and kept on the disk; 0 walks new ones for every
            update
        kept_dtype: precision in which they are kept
    """

    states: PositiveInt = 4
    modes: PositiveInt = 2
    teacher_steps: PositiveInt = 64
    kept: NonNegativeInt = 0
    kept_dtype: Literal["float16", "float32"] = "float16"

    @model_validator(mode="after")
    def _fits(self) -> "TrajectorySection":
        trajectory_steps(self.states, self.teacher_steps)
        most = self.states // 2 + 1
        if self.modes > most:
            raise ValueError(
                f"modes: expected 1 to {most}, the frequencies of {self.states} states, got "
                f"{self.modes}."
            )
        return self


class TrajectoryConfig(StudentConfig):
    """Keys of an operator of trajectories.

    Arguments:
        student: what the student gives, and the trajectories that it learns from
    """

    student: TrajectorySection = Field(default_factory=TrajectorySection)


class TrajectoryTask(StudentTask):
    """A student that gives the states of its teacher's trajectory by one call."""

    schema = TrajectoryConfig
    noun = "an operator of trajectories"
    kept: KeptTrajectories | None = None

    @classmethod
    def walk(cls, config: RunConfig) -> Sampler:
        return Spans(1)

    @property
    def teacher_walk(self) -> Sampler:
        return DDIM(self.config.student.teacher_steps)

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "TrajectoryTask":
        task = super().build(config, run)
        model, section = task.model, config.student
        require(trajectory_problem(model), UsageError)
        model.time_density = FROM_NOISE
        times = trajectory_times(section.states)
        # What the network reads in place of times is the kernel's.
        _, shown = model.kernel.shown(torch.zeros(len(times), 1, 1, 1, 1, device="cpu"), times)
        model.network.take_trajectory(shown.tolist(), modes=section.modes)
        return task

    def fit(
        self, samples: Samples, *, fresh: bool, cache: Cache, accelerator: Accelerator
    ) -> Samples:
        """Trajectories that are kept, too."""
        fitted = super().fit(samples, fresh=fresh, cache=cache, accelerator=accelerator)
        if self.config.student.kept:
            x = fitted.dataset.sample(0, key=0).x
            shape = (x.shape[0], *(self.config.crop or x.shape[1:]))
            self.kept = self.keep_trajectories(shape, cache=cache, accelerator=accelerator)
        return fitted

    def keep_trajectories(
        self, shape: tuple[int, ...], *, cache: Cache, accelerator: Accelerator
    ) -> KeptTrajectories:
        """Trajectories of the teacher, computed where they are missing.

        Arguments:
            shape: (c, d, h, w) of the volumes that the loss sees
            cache: where they are kept
            accelerator: all processes take part

        Raises:
            UsageError: trajectories depend on more than noise, or the disk has no room for them
        """
        c, section = self.config.data.channel_count, self.config.student
        require(kept_problem(self.model, c, crop=self.config.crop), UsageError)
        return KeptTrajectories.made(
            lambda n: self._walked_from(self._noise((self._number(n),), shape)),
            count=section.kept,
            size=self._bytes(shape),
            dtype=section.kept_dtype,
            fingerprint=self._fingerprint(shape, accelerator),
            cache=cache,
            accelerator=accelerator,
        )

    def _bytes(self, shape: tuple[int, ...]) -> int:
        """Of a kept trajectory."""
        space, section = self._seen.space, self.config.student
        c, d, h, w = shape
        numbers = section.states * space.channels(c) * prod(space.grid((d, h, w)))
        return numbers * np.dtype(section.kept_dtype).itemsize

    def _fingerprint(
        self, shape: tuple[int, ...], accelerator: Accelerator
    ) -> Mapping[str, object]:
        """All that kept trajectories depend on."""
        section, model = self.config.student, self.model
        return {
            "teacher": self._kept().facts.weights_sha256,
            "space": json.dumps(self.config.space, sort_keys=True),
            "autoencoders": self.digest,
            "kernel": repr(model.kernel),
            "noise": repr(model.noise_field),
            "computed_in": str(model.dtype),
            "states": section.states,
            "steps": section.teacher_steps,
            "shape": list(shape),
            "seed": self.config.seed,
            "device": accelerator.device.type,
        }

    def _number(self, number: int) -> int:
        """Key of the noise that a kept trajectory begins with."""
        return key(self.config.seed, "trajectory", number)

    def _noise(self, keys: tuple[int, ...], shape: tuple[int, ...]) -> State:
        """z_1 of each key."""
        model = self._seen
        noise = state_noise(model.space, model.noise_field, keys, shape, LOSS, device=self.device)
        return model.kernel.prior(noise)

    def _walked_from(
        self, z_1: State, condition: Condition | None = None
    ) -> Float[Tensor, "b m k d h w"]:
        """The teacher's states."""
        teacher, section = self.teacher, self.config.student
        return walked(
            teacher,
            z_1,
            teacher.prepared(condition or Condition()),
            states=section.states,
            steps=section.teacher_steps,
        )

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        model, shape = self._seen, tuple(batch.x.shape[1:])
        condition = _condition(model, batch)
        if self.kept is not None and self.module.training:
            numbers = [k % self.kept.count for k in batch.keys]
            z_1 = self._noise(tuple(self._number(n) for n in numbers), shape)
            target = self.kept.read(numbers).to(z_1)
        else:
            z_1 = self._noise(batch.keys, shape)
            target = self._walked_from(z_1, condition)
        times = trajectory_times(self.config.student.states)
        found = model.trajectory(z_1, times, condition)
        return trajectory_loss(found, target, model.kernel.schedule)

    def _walked(self, model: Model, sampler: Sampler, samples: Samples, index: int) -> State:
        """Where a walk from noise ends, with the condition of a validation volume."""
        sample = samples.held.sample(index, key=key(self.config.seed, "validation", index))
        batch = collate([sample]).to(self.device)
        return sampler.sample(
            model.denoise,
            model.kernel,
            self._noise(batch.keys, tuple(batch.x.shape[1:])),
            sampler.times(model.kernel.schedule),
            condition=model.prepared(_condition(model, batch)),
        )


def _condition(model: Model, batch: Batch) -> Condition:
    condition = model.told(batch.condition, batch.images, batch.mask)
    if not model.recipe.reference:
        return condition
    with torch.no_grad():
        return model.referred(condition, model.encode(batch.x))
