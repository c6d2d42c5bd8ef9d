r"""A volume given what surrounds a void, p(x | (1 - M) x, M): noise everywhere, the rest is told.

From t = 1 the region is redrawn from nothing but its surroundings.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.data.regions import Blobs, Region
from volumediff.recipes._base import Recipe, Subject, Target, shown

__all__ = ["Inpainting"]


@dataclass(frozen=True)
class Inpainting(Recipe):
    """The volume; the volume with a void, and the mask of the void, are conditions.

    Arguments:
        region: what is hidden
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model

    References:
        Durrer et al. (2024), Denoising Diffusion Models for Inpainting of Healthy Brain Tissue,
        arXiv:2402.17307
    """

    needs_foreground: ClassVar[bool] = True
    shows_mask: ClassVar[bool] = True
    region: Region = field(default_factory=Blobs)
    atlas: bool = False
    scalars: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        return 0

    def channels(self, c: int) -> int:
        return c

    def image_channels(self, c: int) -> tuple[int, ...]:
        return (c, c) if self.atlas else (c,)

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        m = subject.region(self.region, key)
        void = subject.x * (1 - m)
        return Target(subject.x, (*shown(self, atlas), void), mask=m)
