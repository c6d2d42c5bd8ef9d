"""Student: the steps that a run was distilled for, whatever they are.

A method that names this sampler serves every student, and no other run.
"""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.compatibility import require
from volumediff.compatibility.chains import student_problem
from volumediff.component import handed_in
from volumediff.model import Model
from volumediff.samplers._base import Memory, Sampler, Step
from volumediff.samplers.spans import Spans
from volumediff.schedules._base import Schedule
from volumediff.time_grids import TimeGrid, UniformTimeGrid

__all__ = ["Student"]


@dataclass(frozen=True)
class Student(Sampler):
    """The run's own sampler, with its own number of steps.

    Until a model is at hand it stands for the usual one, spans of one step.

    Arguments:
        walk: the sampler of the run, see `of`
    """

    steps: int = handed_in(1)
    grid: TimeGrid = handed_in(UniformTimeGrid())
    walk: Sampler = handed_in(Spans(1))

    @property
    def paths(self) -> tuple[str, ...] | None:
        """Those of the run's sampler."""
        return self.walk.paths

    @property
    def reads(self) -> tuple[str, ...]:
        """What the run's sampler goes along."""
        return self.walk.reads

    def of(self, model: Model) -> Sampler:
        """The sampler that the model was distilled for.

        Raises:
            ValueError: it was distilled for none
        """
        require(student_problem(model.walk))
        return model.walk

    def times(self, schedule: Schedule, start: float = 1.0) -> Float[Tensor, "n"]:
        """Those of the run's sampler."""
        return self.walk.times(schedule, start)

    def step(self, step: Step) -> tuple[Float[Tensor, "b k d h w"], Memory]:
        return self.walk.step(step)
