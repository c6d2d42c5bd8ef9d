r"""A region of a volume given clean tissue around it,

.. math:: z_t = M_z (α_t z_0 + σ_t ε) + (1 - M_z) z_0,

the loss inside the region alone. A network may also say where noise is, p(M | z_t), by log-odds
with the cross entropy as loss; M is the region on the grid of the state.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.data.regions import Box, Region
from volumediff.recipes._base import Recipe, Subject, Target, shown

__all__ = ["LocalNoise"]


@dataclass(frozen=True)
class LocalNoise(Recipe):
    """The volume with noise in a region.

    Arguments:
        region: where the noise is
        tell: whether the network is shown the region; noise shows it well enough unless t is low
        mask_loss: λ, weight of the cross entropy of the region, which the network then predicts in
            a channel of its own; 0 for a network that predicts none
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model

    References:
        Behrendt et al. (2023), Patched Diffusion Models for Unsupervised Anomaly Detection in
        Brain MRI, arXiv:2303.03758; Beizaee et al. (2025), MAD-AD, arXiv:2502.16943, with cells
        that the network predicts
    """

    teaches: ClassVar[str] = "local_noise"
    samples: ClassVar[bool] = False
    needs_foreground: ClassVar[bool] = True
    local: ClassVar[bool] = True
    region: Region = field(default_factory=Box)
    tell: bool = False
    mask_loss: float = 0.0
    atlas: bool = False
    scalars: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.mask_loss < math.inf:
            raise ValueError(f"mask_loss: expected a weight >= 0, got {self.mask_loss}.")
        if self.tell and self.mask_loss:
            raise ValueError(
                "mask_loss: expected 0 for a network that is shown the region, got "
                f"{self.mask_loss}; use tell=false."
            )

    @property
    def shows_mask(self) -> bool:  # type: ignore[override]
        return self.tell

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
        m = subject.region(self.region, key)
        return Target(subject.x, shown(self, atlas), mask=m if self.tell else None, region=m)
