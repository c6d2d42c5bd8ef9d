"""How much the prediction changes with the class, at every step of the chain:"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext, classes_of
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.needs.model import Classes
from volumediff.component import Requirement
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser
from volumediff.samplers._base import Context, Hook

__all__ = ["ClassContrast"]


@dataclass(frozen=True)
class ClassContrast(Editing):
    r"""How much the prediction changes with the class, at every step of the chain:

    .. math:: a_t = d\big(D(\hat z_0(z_t, c)),\; D(\hat z_0(z_t, c'))\big)

    with d the method's map, c healthy, and c' on the way to another class: among the embeddings,
    c' = (1 - w) c + w c_1. The maps join the ensemble and the
    residual of the pseudo-healthy volume does not: anatomy that the model cannot keep is the same
    in both.

    Arguments:
        other: index of the class c_1; 1 is the first that is not healthy
        share: w in (0, 1]; 1 is the other class itself

    References:
        Hu et al. (2023), Conditional Diffusion Models for Weakly Supervised Medical Image
        Segmentation, arXiv:2306.03878: w = 0.05, a finite difference by the class
    """

    own_map: ClassVar[bool] = False
    other: int = 1
    share: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share: expected a share in (0, 1], got {self.share}.")

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Both classes."""
        return (Classes(self.other, "editing class_contrast"),)

    def start(self, context: MethodContext) -> Float[Tensor, "1 c d h w"]:
        """The volume."""
        return context.x

    def times(self, times: Float[Tensor, "n"]) -> Float[Tensor, "m"]:
        """The sampler's grid."""
        return times

    def asked(self, context: MethodContext) -> tuple[Denoiser, Condition]:
        """The guided model."""
        return context.denoise, context.condition

    def hook(self, context: MethodContext) -> Hook | None:
        """Collects a map, changes nothing."""
        own = context.condition.label
        other = context.condition.replace(label=torch.full_like(own, self.other))
        if self.share < 1:
            mixture = torch.zeros(len(own), classes_of(context.model) + 1, device=own.device)
            mixture[:, self.other] = self.share
            mixture[torch.arange(len(own)), own] = 1 - self.share
            other = context.condition.replace(label=None, mixture=mixture)

        def contrast(ctx: Context) -> tuple[Tensor, Tensor]:
            away = context.unguided(ctx.z_t, ctx.t, other)
            volumes = (context.decode(p.x0) for p in (ctx.prediction, away))
            context.maps.append(context.distance_of(*volumes))
            return ctx.prediction.x0, ctx.z_t

        return contrast

    def finish(
        self, context: MethodContext, healthy: Float[Tensor, "1 c d h w"]
    ) -> Float[Tensor, "1 c d h w"]:
        """The decoded volume."""
        return healthy

    def weigh(
        self, context: MethodContext, scores: Float[Tensor, "1 1 d h w"]
    ) -> Float[Tensor, "1 1 d h w"]:
        """The map."""
        return scores
