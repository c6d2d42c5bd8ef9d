r"""Reflow: the teacher's own pairs of noise and volume, joined by paths that become straight,

.. math:: z_1 \sim \text{prior}, \qquad z_0 = \text{walk}_\eta(z_1), \qquad
          \epsilon = (z_1 - \alpha_1 z_0) / \sigma_1, \qquad
          z_t = \alpha_t z_0 + \sigma_t \epsilon,

on which the student is trained as any diffusion model is. Independent pairs cross on their way,
and a network that must predict the mean of all that cross goes along curves; pairs of one walk
cross less, and where none do, the clean state is the same all along a path and one step is exact.

Nothing is asked of the training volumes but their size and their conditions. Pairs are drawn anew
for every sample and kept nowhere: a step of training costs one walk of the teacher.

References:
    Liu et al. (2023), Flow Straight and Fast: Learning to Generate and Transfer Data with
    Rectified Flow, arXiv:2209.03003, algorithm 1 and eq. 11 for the straightness
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor

from volumediff.batch import Batch, NoisyBatch
from volumediff.condition import Condition
from volumediff.errors import UsageError
from volumediff.kernels._base import Denoiser, Kernel
from volumediff.samplers._base import Context
from volumediff.samplers.ddim import DDIM
from volumediff.samples.dataset import Samples
from volumediff.schedules._base import per_sample
from volumediff.settings.run_config import RunConfig
from volumediff.settings.sections import Section
from volumediff.tasks._loading import load_task
from volumediff.tasks._student import COMPARED, StudentConfig, StudentTask, euler_step

__all__ = ["ReflowConfig", "ReflowTask", "coupled", "curvature"]

State = Float[Tensor, "b k d h w"]
NODES = 16  # steps of the walks whose straightness is measured


class ReflowSection(Section):
    """In how many steps the student is walked, and the teacher to draw its pairs.

    Arguments:
        steps: steps in which the student is walked
        from_steps: steps in which the teacher is walked
    """

    steps: PositiveInt = 4
    from_steps: Annotated[int, Field(ge=2)] = 32


class ReflowConfig(StudentConfig):
    """Keys of a student with straighter paths.

    Arguments:
        student: steps of the student and of its teacher
    """

    student: ReflowSection = ReflowSection()


class ReflowTask(StudentTask):
    """A diffusion model of the pairs that its teacher makes."""

    schema = ReflowConfig
    noun = "a reflowed diffusion model"
    config: ReflowConfig

    @classmethod
    def walk(cls, config: RunConfig) -> DDIM:
        return DDIM(config.student.steps)

    @classmethod
    def build(cls, config: RunConfig, run: Path | None) -> "StudentTask":
        task = super().build(config, run)
        _, high = task.model.time_density.support
        if high < 1:
            raise UsageError(
                f"times: expected times up to 1, where the pairs of reflow begin, got {high:g}; "
                "use a teacher with times=uniform."
            )
        return task

    def loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        seen = self._seen.corrupted(batch)
        with torch.no_grad():
            z_1 = seen.kernel.prior(seen.noise)
            z_0 = self._drawn(z_1, seen.condition)
            noise = coupled(seen.kernel, z_0, z_1)
            z_t = seen.kernel.corrupt(z_0, seen.t, noise)
        return self._seen.kernel_loss(replace(seen, z_0=z_0, z_t=z_t, noise=noise))

    def _drawn(self, z: State, condition: Condition) -> State:
        """What the teacher makes of noise."""
        teacher, spans = self.teacher, self.teacher_walk
        told = teacher.prepared(condition)
        t = torch.ones(len(z), dtype=torch.float64, device=z.device)
        for _ in range(spans.steps):
            s = spans.ahead(t)
            z = euler_step(teacher.denoise, teacher.kernel, z, t, s, told)
            t = s
        return z

    def start(self, seen: NoisyBatch) -> tuple[State, float]:
        """Noise alone: student and teacher share no path from partly noisy states."""
        return seen.kernel.prior(seen.noise), 1.0

    def finish(self, samples: Samples, run: Path) -> Sequence[str]:
        """How far paths of validation volumes are from straight, before and after."""
        count = min(COMPARED, self.config.validation.volumes, len(samples.held))
        if not count:
            return ()
        networks = (self._original().network, load_task(run).model.network)
        found = []
        for network in networks:
            model = self._seen.with_network(network.to(self.device).eval())
            batches = (self._validated(samples, index) for index in range(count))
            seen = [self._seen.corrupted(batch) for batch in batches]
            bent = [
                curvature(model.denoise, s.kernel, self.start(s)[0], s.condition) for s in seen
            ]
            found.append(float(torch.cat(bent).mean()))
        before, after = found
        return (
            f"curvature of the paths of {count} validation volumes, 0 where one step is exact: "
            f"{before:.3g} of the teacher, {after:.3g} of the student.",
        )


def coupled(kernel: Kernel, z_0: State, z_1: State) -> State:
    """The noise that leads from a clean state to a given one at t = 1."""
    one = torch.ones(len(z_0), dtype=torch.float64, device=z_0.device)
    alpha, sigma = kernel.schedule(one)
    return per_sample(1 / sigma, z_1) * z_1 - per_sample(alpha / sigma, z_0) * z_0


def curvature(
    denoise: Denoiser, kernel: Kernel, z_1: State, condition: Condition, *, steps: int = NODES
) -> Float[Tensor, "b"]:
    r"""How much the predicted clean state changes along walks from t = 1,

    .. math:: \frac1N \sum_i \overline{\|\hat z_0(z_{t_i}, t_i) - z_0\|^2},

    which is 0 exactly where every step of any length ends on the path. For alpha = 1 - t and
    sigma = t it is t² times the squared distance of the velocity from z_1 - z_0, of eq. 11.
    """
    said: list[State] = []

    def watch(context: Context) -> tuple[Tensor, Tensor]:
        said.append(context.prediction.x0)
        return context.prediction.x0, context.z_t

    sampler = DDIM(steps)
    times = sampler.times(kernel.schedule)
    z_0 = sampler.sample(denoise, kernel, z_1, times, condition=condition, on_x0=watch)
    gaps = [(x0 - z_0).square().flatten(1).mean(1) for x0 in said]
    return torch.stack(gaps).mean(0)
