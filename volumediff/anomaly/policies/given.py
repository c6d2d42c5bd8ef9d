"""Redraws the region that comes with the volume: `Localizer.localize(..., region=...)`."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._filters import dilate
from volumediff.anomaly._scene import Scene
from volumediff.anomaly.policies._masked import Masked
from volumediff.anomaly.policies._stitching import check_visits

__all__ = ["Given"]


@dataclass(frozen=True)
class Given(Masked):
    """Redraws the region that comes with the volume: `Localizer.localize(..., region=...)`.

    Arguments:
        dilate_mm: half-width by which the region grows
        resampling: U, visits of each step
    """

    dilate_mm: float = 0.0
    resampling: int = 1

    def __post_init__(self) -> None:
        check_visits(self.resampling)

    def mask(self, scene: Scene) -> Float[Tensor, "1 1 d h w"]:
        """The region, dilated.

        Raises:
            ValueError: the volume came without one
        """
        if scene.region is None:
            raise ValueError(
                "policy given: expected a region to redraw, got none; pass region= with the "
                "volume, or use the policy inpaint, which finds one."
            )
        m = scene.region.to(scene.x.dtype)
        return dilate(m, radius_mm=self.dilate_mm, spacing_mm=scene.spacing_mm)
