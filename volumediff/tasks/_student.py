"""What all students share: they begin as their teacher and become a diffusion run like any other.

    teacher ─ copied into RUN/borrowed/teacher ─▶ weights of step 0, and the network that is asked

The teacher's data, preprocessing, normalisation, space, kernel, network and recipe are the
student's. Its weights are needed by training alone: the trained run stands by itself, and says by
its `walk` in how many steps it is walked.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from pydantic import model_validator
from torch import Tensor, nn

from volumediff.batch import Batch, NoisyBatch
from volumediff.compatibility.training import distillation_problem
from volumediff.condition import Condition
from volumediff.config import build
from volumediff.errors import DataError, UsageError
from volumediff.kernels._base import Denoiser, Kernel
from volumediff.model import Model
from volumediff.randomness import key
from volumediff.samplers._base import Sampler
from volumediff.samplers.spans import Spans
from volumediff.samples.dataset import Samples, collate
from volumediff.samples.landmarks import keep_landmarks
from volumediff.samples.statistics import Statistics
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Component
from volumediff.storage import checkpoint
from volumediff.storage.folder import discard
from volumediff.tasks._agreement import agree
from volumediff.tasks._base import Criterion, best_of
from volumediff.tasks._borrowing import Kept, keep, keep_copy, kept, source_of, take
from volumediff.tasks._encoders import IMAGE, STATES
from volumediff.tasks._loading import load_task
from volumediff.tasks.diffusion import DiffusionConfig, DiffusionTask

__all__ = ["StudentConfig", "StudentTask", "distance", "euler_step", "truncated_snr"]

NAME = WHERE = "teacher"
# What a student cannot have otherwise than its teacher.
PARTS = ("space", "kernel", "network", "recipe", "noise")
# Validation volumes on which student and teacher are compared: a walk of the teacher is dear.
COMPARED = 4
TINY = 1e-6  # share of a sample that may be left out; its loss is then 0
CLOSEST = 1e-12  # mean squared distance that counts as none

State = Float[Tensor, "b k d h w"]
Level = Float[Tensor, "b"]


class StudentConfig(DiffusionConfig):
    """Keys of a student of a diffusion run.

    What is not named is that of the teacher; what is named must be the same as there.

    Arguments:
        teacher: folder of the diffusion run that the student learns from
        space: that of the teacher
        kernel: that of the teacher
        network: that of the teacher
        recipe: that of the teacher
        noise: that of the teacher
        times: density of the times that the student learns to begin at
        guidance: least and greatest weight of guidance that students of a guided student learn
    """

    teacher: Path
    space: Component | None = None
    kernel: Component | None = None
    network: Component | None = None
    recipe: Component | None = None
    noise: Component | None = None
    times: Component | None = None
    guidance: tuple[float, float] | None = None

    @model_validator(mode="after")
    def _as_a_student(self) -> "StudentConfig":
        if self.start_from is not None:
            raise ValueError("takes start_from: null: a student begins with its teacher's weights")
        if self.validation.best is not None:
            raise ValueError(
                "takes validation.best: null for a student, which is chosen by how close it comes "
                "to its teacher"
            )
        return self

    def borrows(self) -> dict[str, Path]:
        """The teacher, and the autoencoders of its states."""
        return {**super().borrows(), WHERE: self.teacher}


class StudentTask(DiffusionTask):
    """A diffusion model that is distilled from another one; what it learns is left to define."""

    noun = "a distilled diffusion model"
    fits_intensities = False
    fits_states = False
    adaptable = False  # it begins with its teacher's weights and with no other run
    training_copies = (NAME,)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._run: Path | None = None
        # Where the teacher comes to from the noisy states of validation volumes, in host memory.
        self._taught: dict[int, State] = {}

    @classmethod
    @abstractmethod
    def walk(cls, config: RunConfig) -> Sampler | None:
        """The sampler that the student is distilled for; None where any will do."""

    @property
    def teacher_walk(self) -> Sampler:
        """The sampler of the teacher, whose results the student is to reach: `from_steps` spans of
        one length, for students that do not say otherwise."""
        return Spans(self.config.student.from_steps)

    # Configuration and building

    @classmethod
    def resolve(cls, config: RunConfig) -> RunConfig:
        """Data, crop and all parts of the teacher's run."""
        missing = [name for name in PARTS if getattr(config, name) is None]
        if not missing:
            return config
        source = source_of(config.teacher, where=WHERE, channels=config.data.channels)
        if not isinstance(source, DiffusionConfig):
            raise UsageError(f"{WHERE} = {config.teacher}: expected the run of a diffusion model.")
        parts = {name: getattr(source, name) for name in missing}
        # outputs that only a loss of the teacher trains are still outputs
        parts |= {"losses": source.losses}
        if config.guidance is None and isinstance(source, StudentConfig):
            parts["guidance"] = source.guidance
        elif isinstance(source, StudentConfig) and source.guidance is not None:
            raise UsageError(
                f"{WHERE} = {config.teacher}: is told the weight of its guidance already; "
                "leave guidance out."
            )
        if config.data.root is None:
            parts["data"] = source.data
        if config.crop is None:
            parts["crop"] = source.crop
        if config.times is None:
            _, high = build("times", source.times).support
            parts["times"] = {"name": "uniform", "high": high}
        return config.model_copy(update=parts)

    @classmethod
    def keep(cls, config: RunConfig, run: Path) -> None:
        """Copies the teacher, its autoencoders and what its run measured."""
        if kept(run, NAME) is not None:
            return
        of, source = config.teacher, source_of(config.teacher, where=WHERE)
        best_of(of, where=WHERE)
        pairs = {name: (getattr(config, name), getattr(source, name, None)) for name in PARTS}
        pairs["data.preprocessing"] = config.data.preprocessing, source.data.preprocessing
        pairs["data.channels"] = config.data.channels, source.data.channels
        agree(pairs, where=WHERE, of=of, hint="leave it out, it is taken from that run")
        teacher = load_task(of)
        for name in (STATES, IMAGE):
            keep_copy(run, name, of=of)
        if not checkpoint.exists(run, "last"):
            discard(run / "statistics")
            Statistics.load(of).save(run)
            keep_landmarks(run, of)
        keep(run, NAME, of=of, tensors=teacher.state(), where=WHERE)

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "StudentTask":
        task = super().build(config, run)
        problem = distillation_problem(task.model)
        if problem is not None:
            raise UsageError(f"{WHERE} = {config.teacher}: {problem}")
        if config.guidance is not None:
            task.model.take_guidance(*config.guidance)
            config.memory.apply(task.model)
        codec = task.model.space.image_codec
        if codec is not None:
            codec.requires_grad_(False)
        return task

    @property
    def guided_teacher(self) -> bool:
        """Whether the teacher is told the weight of a guidance."""
        return self.config.guidance is not None

    # Training

    def begin_training(self, run: Path | None, *, fresh: bool) -> None:
        """The teacher's network, and its weights in the student before the first step."""
        self._run = run
        if run is not None and fresh:
            take(self.model, self._kept())
        self.training_only[NAME] = self._original().network

    def _original(self) -> Model:
        """The model with the teacher's weights, as they were copied; fresh ones for the planner.

        Raises:
            DataError: the copy is gone or damaged
        """
        twin = DiffusionTask.build(self.config, self._run).model
        if self.guided_teacher:
            twin.take_guidance(*self.config.guidance)
        if self._run is not None:
            take(twin, self._kept())
        return twin.requires_grad_(False).eval()

    def _kept(self) -> Kept:
        copy = kept(self._run, NAME)
        if copy is None:
            raise DataError(f"{self._run}: keeps no teacher; restore the folder from a backup.")
        return copy

    @property
    def teacher(self) -> Model:
        """The model with the network that is asked, on the volumes that the loader brings."""
        return self._seen.with_network(self.training_only[NAME])

    def modules(self) -> Mapping[str, nn.Module]:
        """The network alone: an encoder of images stays the teacher's."""
        return {"network": self.model.network}

    # Validation

    def criterion(self, samples: Samples) -> Criterion | None:
        """How close the student's own steps come to those of the teacher, in dB.

        Both start from the same noisy states of validation volumes.
        """
        count = min(COMPARED, self.config.validation.volumes, len(samples.held))
        return (
            Criterion("agreement_db", count, partial(self._agreement, samples)) if count else None
        )

    def _agreement(self, samples: Samples, index: int) -> float:
        if index not in self._taught:
            original = self._seen.with_network(self._original().network.to(self.device))
            found = self._walked(original, self.teacher_walk, samples, index)
            self._taught[index] = found.cpu()
        sampler = self.walk(self.config) or self.teacher_walk
        found = self._walked(self._seen, sampler, samples, index)
        gap = found - self._taught[index].to(found)
        return -10 * math.log10(max(float(gap.square().mean()), CLOSEST))

    def denoiser(self, model: Model) -> Denoiser:
        """What is walked of the model with the weights of the teacher, or of the student."""
        return model.denoise

    def start(self, seen: NoisyBatch) -> tuple[State, float]:
        """The state and the time from which student and teacher are walked to be compared."""
        return seen.z_t, float(seen.t)

    def _validated(self, samples: Samples, index: int) -> Batch:
        sample = samples.held.sample(index, key=key(self.config.seed, "validation", index))
        return collate([sample]).to(self.device)

    def _walked(self, model: Model, sampler: Sampler, samples: Samples, index: int) -> State:
        """Where a walk from the noisy state of a validation volume ends."""
        batch = self._validated(samples, index)
        seen = self._seen.corrupted(batch)
        z, t = self.start(seen)
        return sampler.sample(
            self.denoiser(model),
            seen.kernel,
            z,
            sampler.times(seen.kernel.schedule, t),
            condition=seen.condition,
            noise=model.noise(batch.keys, tuple(batch.x.shape[1:])),
        )


def euler_step(
    denoise: Denoiser, kernel: Kernel, z_t: State, t: Level, s: Level, condition: Condition
) -> State:
    """The first-order step from t to s, both per sample; none where they are equal."""
    said = denoise(z_t, t, condition)
    z_s = kernel.corrupt(said.x0, s, said.eps)
    return torch.where((s < t)[:, None, None, None, None], z_s, z_t)


def distance(a: State, b: State, m: Float[Tensor, "b 1 d h w"] | None) -> Level:
    """Mean squared difference per sample, in float32 or wider.

    Arguments:
        m: where it counts; None for everywhere
    """
    dtype = torch.promote_types(a.dtype, torch.float32)
    gaps = (a.to(dtype) - b.to(dtype)).square()
    if m is None:
        return gaps.flatten(1).mean(1)
    return (gaps * m).flatten(1).mean(1) / m.flatten(1).mean(1).clamp(min=TINY)


def truncated_snr(seen: NoisyBatch) -> Level:
    """max(SNR, 1), the weight of the squared error of a clean state."""
    alpha, sigma = seen.kernel.schedule(seen.t)
    return (alpha / sigma).square().clamp(min=1)
