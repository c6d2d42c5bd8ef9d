r"""A healthy volume given the same one with an anomaly, p(x | x').

.. math:: x' = \text{corruption}(f(x)),

with f a random curve of the signal (x + 1) / 2. At t = 1 with zero terminal SNR the state says
nothing, and one network call gives the mean healthy volume E[x | x'], as a restoring U-Net does; a
chain draws possible ones. With f, the condition comes in any contrast, and what is restored stays
in that of the training volumes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.data.corruptions import Corruption
from volumediff.data.corruptions.fluid import Fluid
from volumediff.data.curves import curved
from volumediff.data.mirror import mirrored
from volumediff.randomness import generator, uniform
from volumediff.recipes._base import Recipe, Subject, Target, shown

__all__ = ["PseudoHealthy", "recoloured"]

KNOTS = 5  # of the curve of the contrast: about one for each tissue


@dataclass(frozen=True)
class PseudoHealthy(Recipe):
    """The volume; the volume with a synthetic anomaly, and its mirror image, are conditions.

    Arguments:
        corruption: from f(x) to x'
        mirror: whether the condition's reflection about the midline is a second one, so that the
            healthy side says what the other should look like; for volumes with left and right
            along d
        contrast: share of the samples whose condition has another contrast, f drawn; the others
            have their own, f(s) = s
        sound: share of samples whose condition has no anomaly
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model

    References:
        Liu et al. (2025), UNA, arXiv:2501.13370, for restoration from any contrast with the mirror
        image; Lawry Aguila et al. (2025), arXiv:2506.10233, for the conditional diffusion model;
        Zhou et al. (2019), Models Genesis, arXiv:1908.06912, for random curves of the signal
    """

    teaches: ClassVar[str] = "pseudo_healthy"
    paired: ClassVar[bool] = True
    needs_foreground: ClassVar[bool] = True
    corruption: Corruption = field(default_factory=Fluid)
    mirror: bool = False
    contrast: float = 0.0
    sound: float = 0.1
    atlas: bool = False
    scalars: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.sound < 1:
            raise ValueError(f"sound: expected a share in [0, 1), got {self.sound}.")
        if not 0 <= self.contrast <= 1:
            raise ValueError(f"contrast: expected a share in [0, 1], got {self.contrast}.")

    @property
    def classes(self) -> int:
        return 0

    def channels(self, c: int) -> int:
        return c

    def image_channels(self, c: int) -> tuple[int, ...]:
        own = 2 * c if self.mirror else c
        return (c, own) if self.atlas else (own,)

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        assert subject.foreground is not None, "needs_foreground"
        seen = subject.x
        if uniform(key, "recolour") < self.contrast:
            seen = recoloured(seen, subject.foreground, key)
        if uniform(key, "sound") >= self.sound:
            seen, _ = replace(subject, x=seen).corrupted(self.corruption, key)
        hint = self.hint(seen[None], subject.foreground[None])[0]
        return Target(subject.x, (*shown(self, atlas), hint))

    def hint(
        self, x: Float[Tensor, "b c d h w"], foreground: Bool[Tensor, "b 1 d h w"]
    ) -> Float[Tensor, "b _ d h w"]:
        """The condition beside the atlas: the volume, and its other side where that is asked."""
        if not self.mirror:
            return x
        return torch.cat([x, mirrored(x + 1, foreground) - 1], dim=1)


def recoloured(
    x: Float[Tensor, "c d h w"], foreground: Bool[Tensor, "1 d h w"], key: int
) -> Float[Tensor, "c d h w"]:
    """A volume in another contrast: each channel through a random curve, the background kept.

    The curve is linear between uniform numbers at equal distances; tissues that are told apart by
    their signal get a brightness of their own, in any order.
    """
    values = torch.rand((len(x), KNOTS), generator=generator(key, "curve")).to(x)
    s = torch.stack([curved((c + 1) / 2, v) for c, v in zip(x, values, strict=True)])
    return torch.where(foreground, 2 * s - 1, x)
