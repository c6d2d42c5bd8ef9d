"""Contract of classifiers of noisy states: what the class of a volume is, seen through noise.

They live in state space, so that one classifier serves any pipeline whose states it was trained
on, and the gradient with respect to the state needs no decoder.
"""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.networks._embedding import Embedding
from volumediff.networks._streamable import Streamable

__all__ = ["Classifier"]


class Classifier(Streamable):
    """A function of the noisy state and the time.

    Arguments:
        in_channels: channels of the state z_t
        classes: number of classes, `HEALTHY` first
        frequencies: Fourier features of the time
    """

    def __init__(self, in_channels: int, classes: int, *, frequencies: int = 64) -> None:
        super().__init__()
        if classes < 2:
            raise ValueError(
                f"a classifier needs at least two classes, got {classes}; use the recipe "
                "class_conditional with their values."
            )
        self.in_channels = in_channels
        self.classes = classes
        self.embedding = Embedding(frequencies)

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        """The features."""
        return ((self, "features"),)

    @abstractmethod
    def features(
        self, x: Float[Tensor, "b k d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b o d2 h2 w2"]:
        """From the state and the embedding of the time to features, volume to volume."""

    @abstractmethod
    def pool(self, features: Float[Tensor, "b o d2 h2 w2"]) -> Float[Tensor, "b l"]:
        """From features to logits, at least in float32."""

    def forward(
        self, z_t: Float[Tensor, "b k d h w"], t: Float[Tensor, "b"]
    ) -> Float[Tensor, "b l"]:
        """Logits, at least in float32."""
        # As in networks, the embedding is never below float32.
        dtype = torch.promote_types(z_t.dtype, torch.float32)
        return self.pool(self.features(z_t, self.embedding(t.to(dtype), Condition())))
