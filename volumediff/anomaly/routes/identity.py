"""Adds no noise at all: the reconstruction of the space, such as an autoencoder."""

from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import no_sampler
from volumediff.samplers._base import Sampler

__all__ = ["Identity"]


@dataclass(frozen=True)
class Identity(Route):
    """Adds no noise at all: the reconstruction of the space, such as an autoencoder."""

    chain: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    corrupts: ClassVar[bool] = False
    paths: ClassVar[tuple[str, ...] | None] = None

    def noise_levels(self) -> list[Level]:
        """None."""
        return []

    def check(self, sampler: Sampler | None) -> None:
        """A sampler would never be used."""
        no_sampler("identity", sampler)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """One volume."""
        yield editing.finish(context, context.decode(context.encode(editing.start(context))))
