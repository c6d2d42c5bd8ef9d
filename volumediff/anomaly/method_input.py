"""The input of every method: a volume with its foreground, voxel size and conditions."""

from dataclasses import dataclass, field

from jaxtyping import Bool, Float
from torch import Tensor

from volumediff.condition import Condition

__all__ = ["Example", "Spacing"]

Spacing = tuple[float, float, float]
"""Voxel size along d, h, w in mm."""


@dataclass(frozen=True, eq=False)
class Example:
    """A volume to localize in, to calibrate on or to learn from.

    Arguments:
        x: the volume
        foreground: voxels that count
        spacing_mm: voxel size along d, h, w
        condition: what the denoiser is conditioned on
        truth: lesion voxels, for validation and learning; no method looks at it to localize
        region: voxels to redraw, for the selector `given`
        saliency: a map from elsewhere, for the route `external`
    """

    x: Float[Tensor, "1 c d h w"]
    foreground: Bool[Tensor, "1 1 d h w"]
    spacing_mm: Spacing
    condition: Condition = field(default_factory=Condition)
    truth: Bool[Tensor, "1 1 d h w"] | None = None
    region: Bool[Tensor, "1 1 d h w"] | None = None
    saliency: Float[Tensor, "1 1 d h w"] | None = None

    @property
    def lesioned(self) -> bool:
        """Whether a lesion is marked: such a volume is no healthy one."""
        return self.truth is not None and bool(self.truth.any())
