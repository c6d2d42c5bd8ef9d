"""Requirements on the training times of a run, by the noise levels of a method."""

from collections.abc import Sequence
from dataclasses import dataclass

from volumediff.anomaly._level import Level
from volumediff.compatibility import require
from volumediff.compatibility.methods import end_problem, times_problem
from volumediff.component import Requirement
from volumediff.model import Model

__all__ = ["Descends", "Levels", "TrainedToTheEnd", "times_of"]


@dataclass(frozen=True)
class TrainedToTheEnd(Requirement):
    """Training times up to one."""

    def check(self, model: Model) -> None:
        """Training must have gone that far."""
        require(end_problem(model))


@dataclass(frozen=True)
class Levels(Requirement):
    """Training times that hold the noise levels of a method.

    Arguments:
        levels: where runs begin
        chain: whether runs go down to 0; if not, they evaluate it at their beginning alone
    """

    levels: tuple[Level, ...]
    chain: bool

    def check(self, model: Model) -> None:
        """Training must have gone there."""
        require(times_problem(model, times_of(self.levels, model), chain=self.chain))


@dataclass(frozen=True)
class Descends(Requirement):
    """A schedule under which a second pass begins at a lower level than the first.

    Arguments:
        levels: of the second pass
        before: of the first
    """

    levels: tuple[Level, ...]
    before: tuple[Level, ...]

    def check(self, model: Model) -> None:
        """The highest levels are compared."""
        times, before = times_of(self.levels, model), times_of(self.before, model)
        if before and max(times) >= max(before):
            raise ValueError(
                "first: expected a second pass at a lower noise level than the first, got "
                f"t = {max(times):.3f} after {max(before):.3f}."
            )


def times_of(levels: Sequence[Level], model: Model) -> list[float]:
    """The times of levels under a model's schedule."""
    return [level.time(model.kernel.schedule) for level in levels]
