"""Contract of editing strategies: what the reverse chain may change."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly.needs.training import OnPath
from volumediff.component import Component, Requirement
from volumediff.condition import Condition
from volumediff.config import name_of
from volumediff.kernels._base import Denoiser
from volumediff.samplers._base import Hook

__all__ = ["Editing"]


@dataclass(frozen=True)
class Editing(Component, ABC):
    """Edits of one reverse chain.

    `edits` says whether there is anything to edit, `two_pass` whether the mask comes from a first
    pass, `refines` whether the second pass must start from a lower level, `own_map` whether the
    pseudo-healthy volume's map joins those that the strategy collects, `takes_region` whether the
    caller says what to redraw, `paths` the kernels whose states it edits, None for all.
    """

    paths: ClassVar[tuple[str, ...] | None] = None
    edits: ClassVar[bool] = True
    two_pass: ClassVar[bool] = False
    refines: ClassVar[bool] = False
    own_map: ClassVar[bool] = True
    takes_region: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """A kernel whose states it edits."""
        of = f"the editing strategy {name_of(type(self))}"
        return () if self.paths is None else (OnPath(self.paths, of),)

    @property
    def healthy_quantile(self) -> float | None:
        """The quantile of the first pass's healthy maps that a mask waits for; None for none."""
        return None

    def with_first_threshold(self, threshold: float) -> "Editing":
        """The strategy with the value of that quantile."""
        return self

    @abstractmethod
    def start(self, context: MethodContext) -> Float[Tensor, "1 c d h w"]:
        """The volume that the route corrupts."""

    @abstractmethod
    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The time grid of the way down, from the sampler's own."""

    @abstractmethod
    def asked(self, context: MethodContext) -> tuple[Denoiser, Condition]:
        """The denoiser that the sampler evaluates, and its condition."""

    @abstractmethod
    def hook(self, context: MethodContext) -> Hook | None:
        """What is done after each prediction."""

    @abstractmethod
    def finish(
        self, context: MethodContext, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The pseudo-healthy volume from the decoded state."""

    @abstractmethod
    def weigh(
        self, context: MethodContext, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map of the method from the map of the pseudo-healthy volume."""
