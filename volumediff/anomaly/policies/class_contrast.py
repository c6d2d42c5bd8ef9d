"""The map is what the class changes: at every step of the chain"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._scene import Scene, classes_of
from volumediff.anomaly.policies._base import Policy
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser
from volumediff.model import Model
from volumediff.samplers._base import Context, Hook

__all__ = ["ClassContrast"]


@dataclass(frozen=True)
class ClassContrast(Policy):
    r"""The map is what the class changes: at every step of the chain

    .. math:: a_t = d\big(D(\hat z_0(z_t, c)),\; D(\hat z_0(z_t, c'))\big)

    with d the row's map, c healthy, and c' another class. The maps join the ensemble and the
    residual of the pseudo-healthy volume does not: anatomy that the model cannot keep is the same
    in both.

    Arguments:
        other: index of the class c'; 1 is the first that is not healthy

    References:
        Hu et al. (2023), Conditional Diffusion Models for Weakly Supervised Medical Image
        Segmentation, arXiv:2306.03878, differentiates by the class, with c' 5 % of the way to
        another class among the embeddings; here it is all the way
    """

    own_map: ClassVar[bool] = False
    other: int = 1

    def problem(self, model: Model) -> str | None:
        """Both classes must exist."""
        classes = classes_of(model)
        if 0 < self.other < classes:
            return None
        got = f"got one with {classes}" if classes else "got one without classes"
        return f"expected a class-conditional checkpoint with a class {self.other}, {got}."

    def start(self, scene: Scene) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return scene.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The sampler's grid."""
        return times

    def asked(self, scene: Scene) -> tuple[Denoiser, Condition]:
        """The guided model."""
        return scene.denoise, scene.condition

    def hook(self, scene: Scene) -> Hook | None:
        """Collects a map, changes nothing."""
        label = torch.full_like(scene.condition.label, self.other)
        other = scene.condition.replace(label=label)

        def contrast(ctx: Context) -> tuple[Tensor, Tensor]:
            away = scene.unguided(ctx.z_t, ctx.t, other)
            volumes = (scene.decode(p.x0) for p in (ctx.prediction, away))
            scene.maps.append(scene.distance_of(*volumes))
            return ctx.prediction.x0, ctx.z_t

        return contrast

    def finish(
        self, scene: Scene, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The decoded volume."""
        return healthy

    def weigh(
        self, scene: Scene, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return scores
