"""Contract of routes: how a volume becomes pseudo-healthy volumes."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level
from volumediff.anomaly.editing._base import Editing
from volumediff.component import Component
from volumediff.samplers._base import Sampler

__all__ = ["Route", "Volumes"]

Volumes = Iterator[Float[Tensor, "1 c d h w"]]


@dataclass(frozen=True)
class Route(Component, ABC):
    """Makes pseudo-healthy versions of a volume.

    `chain` says whether a sampler walks down, so that editing can act; `stochastic` whether noise
    enters; `corrupts` whether the volume is changed at all, so that the space's own loss is not
    the finding; `two_pass` whether the mask comes from a first pass; `own_map` whether the map of
    the method is taken, besides maps that the route leaves in the context; `paths`
    whose states it walks, None for all kernels.
    """

    chain: ClassVar[bool] = True
    stochastic: ClassVar[bool] = True
    corrupts: ClassVar[bool] = True
    two_pass: ClassVar[bool] = False
    own_map: ClassVar[bool] = True
    paths: ClassVar[tuple[str, ...] | None] = ("gaussian",)

    @abstractmethod
    def noise_levels(self) -> list[Level]:
        """The noise levels, highest first or as configured."""

    @abstractmethod
    def check(self, sampler: Sampler | None) -> None:
        """Raises ValueError, with the reason, where the sampler cannot walk the route."""

    @abstractmethod
    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """Pseudo-healthy volumes; `level` replaces the route's own."""
