r"""What recipes of voids share: p(x | x outside M, M), with noise everywhere.

From t = 1 the region M is redrawn from nothing but its surroundings. How surroundings and region
are shown to the network is each recipe's own.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.data.regions import Blobs, Region
from volumediff.recipes._base import Recipe, Subject, Target, shown

__all__ = ["VoidRecipe"]


@dataclass(frozen=True)
class VoidRecipe(Recipe):
    """The volume, given the volume with a void.

    Arguments:
        region: what is hidden
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model
    """

    teaches: ClassVar[str] = "inpainting"
    needs_foreground: ClassVar[bool] = True
    region: Region = field(default_factory=Blobs)
    atlas: bool = False
    scalars: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        return 0

    def channels(self, c: int) -> int:
        return c

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        m = subject.region(self.region, key)
        hints = (hint[0] for hint in self.hints(subject.x[None], m[None]))
        return Target(
            subject.x, (*shown(self, atlas), *hints), mask=m if self.shows_mask else None
        )

    @abstractmethod
    def hints(
        self, x: Float[Tensor, "b c d h w"], m: Float[Tensor, "b 1 d h w"]
    ) -> tuple[Float[Tensor, "b _ d h w"], ...]:
        """Image conditions beside the atlas, without anything of the void.

        Arguments:
            x: the volume
            m: 1 in the void
        """
