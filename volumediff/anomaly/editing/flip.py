"""Changes only those bits of the latent that the model predicts to be flipped."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import tiling
from volumediff.anomaly._context import MethodContext
from volumediff.anomaly.editing._base import Editing
from volumediff.anomaly.needs.model import Bits
from volumediff.component import Requirement
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser
from volumediff.samplers._base import Context, Hook

__all__ = ["Flip"]


@dataclass(frozen=True)
class Flip(Editing):
    r"""Lets only those bits change that the model wants to flip; all others stay the patient's.

    With the mask M of bits, empty at first, after each prediction

    .. math:: M \leftarrow M \cup \{p(z_0 \ne z_t \,|\, z_t) > P\}, \qquad
              \hat z_0 \leftarrow M \hat z_0 + (1 - M) z_0.

    P = 1 frees none and gives D(E(x)), P = 0 frees all and is the plain chain. The published code
    leaves the mask out of its last step, here it is in all. The trace has the share of the freed
    bits of each latent voxel, on the volume.

    Arguments:
        probability: P, in [0, 1]

    References:
        Wolleb et al. (2024), Binary Noise for Binary Tasks: Masked Bernoulli Diffusion for
        Unsupervised Anomaly Detection, arXiv:2403.11667
    """

    paths: ClassVar[tuple[str, ...] | None] = ("discrete",)
    probability: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability: expected one in [0, 1], got {self.probability}.")

    @property
    def needs(self) -> tuple[Requirement, ...]:
        """Bits, and a model of their flips."""
        return Bits("editing flip"), *super().needs

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
        """Puts the patient's own bits back, but for those that were ever to be flipped."""
        own = context.encode(context.x)
        freed = torch.zeros_like(own, dtype=torch.bool)

        def keep(ctx: Context) -> tuple[Tensor, Tensor]:
            # of bits coded as -1 and 1, with their mean x0
            flips = (1 - ctx.z_t * ctx.prediction.x0) / 2
            freed.logical_or_(flips > self.probability)
            context.trace["flip/map"] = _on_volume(freed, context)
            return torch.where(freed, ctx.prediction.x0, own), ctx.z_t

        return keep

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


def _on_volume(
    freed: Bool[Tensor, "1 k d2 h2 w2"], context: MethodContext
) -> Float[Tensor, "1 1 d h w"]:
    """The share of freed bits of each latent voxel, in all voxels of its cell."""
    space, (d, h, w) = context.model.space, context.x.shape[2:]
    share = freed.to(context.x.dtype).mean(1, keepdim=True)
    return tiling.crop(F.interpolate(share, size=space.padded((d, h, w))), (d, h, w))
