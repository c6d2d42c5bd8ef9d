"""Adds no noise at all: the reconstruction of the space, such as an autoencoder."""

from dataclasses import dataclass
from typing import ClassVar

from volumediff.anomaly._scene import Level, MethodContext
from volumediff.anomaly.policies._base import Policy
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
        self, scene: MethodContext, level: Level | None, *, policy: Policy, sampler: Sampler | None
    ) -> Volumes:
        """One volume."""
        yield policy.finish(scene, scene.decode(scene.encode(policy.start(scene))))
