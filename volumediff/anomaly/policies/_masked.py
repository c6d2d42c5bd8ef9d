"""Redraws a region, given everything around it."""

from abc import abstractmethod

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._scene import Scene
from volumediff.anomaly.policies._base import Policy
from volumediff.anomaly.policies._stitching import blended, keeping, revisited
from volumediff.samplers._base import Hook

__all__ = ["Masked"]


class Masked(Policy):
    """Redraws a region, given everything around it."""

    resampling: int = 1

    @abstractmethod
    def mask(self, scene: Scene) -> Float[Tensor, "1 1 d h w"]:
        """The region, 1 inside."""

    def start(self, scene: Scene) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return scene.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The grid with U - 1 returns to the start of every step but the last."""
        return revisited(times, self.resampling)

    def hook(self, scene: Scene) -> Hook | None:
        """Puts the patient's own state back outside the region."""
        return keeping(scene, self.mask(scene))

    def finish(
        self, scene: Scene, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The volume with the region redrawn."""
        return blended(scene, healthy, self.mask(scene))

    def weigh(
        self, scene: Scene, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return scores
