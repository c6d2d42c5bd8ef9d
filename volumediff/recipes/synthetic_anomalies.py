r"""Where a synthetic anomaly was put in a healthy volume, p(m | x').

At t = 1 with zero terminal SNR the state says nothing, and one network call gives the posterior
mean E[m | x']: what a segmentation network trained with the squared error gives.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jaxtyping import Float
from torch import Tensor

from volumediff.data.corruptions import Corruption
from volumediff.data.corruptions.foreign_patch import ForeignPatch
from volumediff.randomness import uniform
from volumediff.recipes._base import Recipe, Subject, Target, shown

__all__ = ["SyntheticAnomalies"]


@dataclass(frozen=True)
class SyntheticAnomalies(Recipe):
    r"""The amount of change m in [0, 1], coded as 2 m - 1; the changed volume is the condition.

    Arguments:
        corruption: from x to x' and m
        atlas: healthy mean volume as image condition
        scalars: attributes that condition the model
        sound: share of samples that stay as they are, with m = 0

    The squared error learns little from a mask of few voxels before thousands of steps; with
    `losses: [{name: dice}]` beside it the map is no posterior mean any more.

    References:
        Tan et al. (2020), Detecting Outliers with Foreign Patch Interpolation, arXiv:2011.04197
    """

    teaches: ClassVar[str] = "synthetic_anomalies"
    needs_foreground: ClassVar[bool] = True
    normalised: ClassVar[bool] = False
    exact: ClassVar[bool] = True
    marks: ClassVar[Literal["self"]] = "self"
    corruption: Corruption = field(default_factory=ForeignPatch)
    atlas: bool = False
    scalars: tuple[str, ...] = ()
    sound: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.sound < 1:
            raise ValueError(f"sound: expected a share in [0, 1), got {self.sound}.")

    @property
    def classes(self) -> int:
        return 0

    def channels(self, c: int) -> int:
        return 1

    def image_channels(self, c: int) -> tuple[int, ...]:
        return (c, c) if self.atlas else (c,)

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        if uniform(key, "sound") < self.sound:
            changed, amount = subject.x, subject.x[:1] * 0
        else:
            changed, amount = subject.corrupted(self.corruption, key)
        return Target(2 * amount - 1, (*shown(self, atlas), changed))
