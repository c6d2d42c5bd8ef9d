"""Whether samplers, routes and editing strategies know the states of a kernel."""

from typing import Protocol, runtime_checkable

from volumediff.compatibility._words import class_of, either, undeclared
from volumediff.config import name_of
from volumediff.kernels._base import Kernel

__all__ = [
    "Stepper",
    "Walker",
    "path_problem",
    "sampler_problem",
    "student_problem",
    "walk_problem",
    "walks",
]


@runtime_checkable
class Walker(Protocol):
    """What walks or edits states: samplers, routes, editing strategies."""

    @property
    def paths(self) -> tuple[str, ...] | None:
        """Paths of the kernels whose states it knows; None for all."""


@runtime_checkable
class Stepper(Walker, Protocol):
    """What steps along predictions."""

    @property
    def reads(self) -> tuple[str, ...]:
        """Quantities of a prediction that it needs."""


@runtime_checkable
class Distilled(Protocol):
    """What a model is distilled for."""

    def admits(self, other: Stepper) -> bool:
        """Whether another sampler will do."""


def walks(walker: Walker, path: str) -> bool:
    """Whether a sampler, route or editing strategy knows the states of a path."""
    return walker.paths is None or path in walker.paths


def sampler_problem(sampler: Stepper, kernel: Kernel | type[Kernel]) -> str | None:
    """Why a sampler cannot walk the states of a kernel."""
    mine, name = type(sampler).__name__, name_of(class_of(kernel))
    if not walks(sampler, kernel.path):
        return (
            f"sampler: expected the kernel {either(sampler.paths)} for {mine}, got {name}, which "
            "has its own steps; use ancestral with variance 0."
        )
    missing = [quantity for quantity in sampler.reads if quantity not in kernel.predicts]
    if missing:
        return (
            f"sampler: expected a kernel that predicts {' and '.join(sampler.reads)} for {mine}, "
            f"got {name}, which does not predict {' and '.join(missing)}; use ancestral."
        )
    return None


def student_problem(walk: object | None) -> str | None:
    """Why a model has no sampler of its own.

    Arguments:
        walk: the sampler that the model was distilled for, if it was
    """
    if walk is not None:
        return None
    return (
        "sampler student: expected a run that was distilled to few steps, got one that was not; "
        "distil one with volumediff train progressive teacher=RUN, or use another sampler, such "
        "as sampler=dpmpp sampler.steps=20."
    )


def walk_problem(sampler: Stepper, walk: Distilled | None) -> str | None:
    """Why a sampler cannot walk a model that was distilled for another one.

    Arguments:
        walk: the sampler that the model was distilled for, if it was
    """
    if walk is None or walk.admits(sampler):
        return None
    return (
        "sampler: expected student for a run that was distilled to few steps of its own, got "
        f"{name_of(type(sampler))}, whose steps it was not trained for; use sampler=student."
    )


def path_problem(walker: Walker, kernel: Kernel | type[Kernel], what: str) -> str | None:
    """Why a route or an editing strategy cannot take the states of a kernel.

    Arguments:
        what: the part in words, such as `the route diffuse`
    """
    if walks(walker, kernel.path):
        return None
    return (
        f"kernel: expected {either(walker.paths)} for {what}, got {name_of(class_of(kernel))}"
        f"{undeclared(kernel.path, 'path')}."
    )
