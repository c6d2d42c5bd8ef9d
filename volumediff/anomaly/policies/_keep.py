"""Redraws a fixed region; what routes with masks of their own use, and no row can name."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._scene import Scene
from volumediff.anomaly.policies._masked import Masked

__all__ = ["Keep"]


@dataclass(frozen=True, eq=False)
class Keep(Masked):
    """Redraws a fixed region; what routes with masks of their own use, and no row can name.

    Arguments:
        region: 1 inside
        resampling: U, visits of each step
    """

    region: Float[Tensor, "1 1 d h w"]
    resampling: int = 1

    def mask(self, scene: Scene) -> Float[Tensor, "1 1 d h w"]:
        """The region."""
        return self.region
