r"""A volume from its degraded version, along a cold kernel,

.. math:: z_t = α_t E(x) + (1 - α_t) E(x'), \qquad x' = \text{corruption}(x),

so that t is the severity. At inference the volume itself is read as a state of some severity.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.data.corruptions import Corruption
from volumediff.data.corruptions.foreign_patch import ForeignPatch
from volumediff.recipes._base import Recipe, Subject, Target, shown

__all__ = ["Degradation"]


@dataclass(frozen=True)
class Degradation(Recipe):
    """The volume, with its degraded version at the end of the kernel.

    Arguments:
        corruption: from x to x'
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model

    References:
        Bansal et al. (2022), Cold Diffusion, arXiv:2208.09392; Marimont et al. (2023), DISYRE,
        arXiv:2311.15453
    """

    teaches: ClassVar[str] = "degradation"
    paths: ClassVar[tuple[str, ...]] = ("cold",)
    samples: ClassVar[bool] = False
    needs_foreground: ClassVar[bool] = True
    corruption: Corruption = field(default_factory=ForeignPatch)
    atlas: bool = False
    scalars: tuple[str, ...] = ()

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
        changed, _ = subject.corrupted(self.corruption, key)
        return Target(subject.x, shown(self, atlas), end=changed)
