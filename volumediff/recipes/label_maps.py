"""Label maps alone, p(m), without the image: what an autoencoder of masks is trained on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.codings._base import Coding
from volumediff.codings.signed import Signed
from volumediff.raters import MajorityRater, Rater
from volumediff.recipes._base import Recipe, Subject, Target
from volumediff.recipes.label_diffusion import LabelDiffusion

__all__ = ["LabelMapRecipe"]


@dataclass(frozen=True)
class LabelMapRecipe(Recipe):
    """The labels of a volume in a code, as `label_diffusion` has them.

    Arguments:
        labels: label values that are learnt; all others are background
        coding: what masks become
        raters: whose labels are learnt, where several readers have labelled
    """

    teaches: ClassVar[str] = "label_maps"
    needs_labels: ClassVar[bool] = True
    normalised: ClassVar[bool] = False
    labels: tuple[int, ...] = (1,)
    coding: Coding = field(default_factory=Signed)
    raters: Rater = field(default_factory=MajorityRater)

    atlas = False
    scalars = ()

    def __post_init__(self) -> None:
        self._with_image  # noqa: B018 - refuses labels that cannot be

    @property
    def _with_image(self) -> LabelDiffusion:
        return LabelDiffusion(self.labels, self.coding, self.raters)

    @property
    def classes(self) -> int:
        return 0

    def healthy(self, attributes: Mapping[str, str | float]) -> bool:
        return True

    def channels(self, c: int) -> int:
        return self._with_image.channels(c)

    def image_channels(self, c: int) -> tuple[int, ...]:
        return ()

    def target(
        self, subject: Subject, *, atlas: Float[Tensor, "c d h w"] | None, key: int
    ) -> Target:
        return Target(self._with_image.target(subject, atlas=atlas, key=key).x)
