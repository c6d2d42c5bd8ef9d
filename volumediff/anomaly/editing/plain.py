"""No edits: the reverse chain of the sampler, unchanged."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.anomaly._context import MethodContext
from volumediff.anomaly.editing._base import Editing
from volumediff.condition import Condition
from volumediff.kernels._base import Denoiser
from volumediff.samplers._base import Hook

__all__ = ["Plain"]


@dataclass(frozen=True)
class Plain(Editing):
    """No edits: the reverse chain runs as the sampler walks it."""

    edits: ClassVar[bool] = False

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
        """None."""
        return None

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
