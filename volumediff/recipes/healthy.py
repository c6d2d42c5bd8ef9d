"""Unconditional model of healthy volumes, p(x)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.recipes._base import Recipe, Subject, Target, shown

__all__ = ["Healthy"]


@dataclass(frozen=True)
class Healthy(Recipe):
    """The volume itself.

    Arguments:
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model
        reference: whether the network is conditioned on the volume through a bottleneck, and so
            knows the subject and not the lesion (cDDPM)
    """

    teaches: ClassVar[str] = "healthy"
    paths: ClassVar[tuple[str, ...]] = ("gaussian", "discrete")
    whole: ClassVar[bool] = True
    fixed: ClassVar[bool] = True
    atlas: bool = False
    scalars: tuple[str, ...] = ()
    reference: bool = False

    @property
    def classes(self) -> int:
        return 0

    def channels(self, c: int) -> int:
        return c

    def image_channels(self, c: int) -> tuple[int, ...]:
        return (c,) if self.atlas else ()

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        return Target(subject.x, shown(self, atlas))
