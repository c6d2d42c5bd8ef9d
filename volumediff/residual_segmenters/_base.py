"""Contract of residual segmentation networks: anomalies of a volume, given its reconstruction.

They live in voxels, so that one file serves every space and every way to reconstruct: nothing of
the model that reconstructed is seen but its residual.
"""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._streamable import Streamable

__all__ = ["ResidualSegmenter"]


class ResidualSegmenter(Streamable):
    """A function of the residual x̂ - x and the volume x, at any size.

    Arguments:
        channels: of the volumes
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        """The body."""
        return ((self, "body"),)

    @abstractmethod
    def body(self, pair: Float[Tensor, "b c2 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        """From the channels of the residual, then those of the volume, to logits."""

    def forward(
        self, residual: Float[Tensor, "b c d h w"], x: Float[Tensor, "b c d h w"]
    ) -> Float[Tensor, "b 1 d h w"]:
        """Logits in the dtype of x."""
        return self.body(torch.cat((residual, x), dim=1))
