"""The map that comes with the volume, as the first pass of another method."""

from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly._level import Level
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.routes._base import Route, Volumes
from volumediff.anomaly.routes._chain import no_sampler
from volumediff.samplers._base import Sampler

__all__ = ["External"]


@dataclass(frozen=True)
class External(Route):
    """The map that comes with the volume: `Localizer.localize(..., saliency=...)`."""

    chain: ClassVar[bool] = False
    stochastic: ClassVar[bool] = False
    corrupts: ClassVar[bool] = False
    own_map: ClassVar[bool] = False

    def noise_levels(self) -> list[Level]:
        """None."""
        return []

    def check(self, sampler: Sampler | None) -> None:
        """A sampler would never be used."""
        no_sampler("external", sampler)

    def __call__(
        self,
        context: MethodContext,
        level: Level | None,
        *,
        editing: Editing,
        sampler: Sampler | None,
    ) -> Volumes:
        """No volume; the map.

        Raises:
            ValueError: the volume came without one
        """
        if context.saliency is None:
            raise ValueError(
                "route external: expected a map with the volume, got none; give one as saliency, "
                "or use another first pass."
            )
        context.maps.append(context.saliency.to(context.x) * context.foreground)
        yield from ()
