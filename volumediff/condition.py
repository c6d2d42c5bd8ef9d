"""Conditions: what the denoiser is conditioned on beside the noisy state, p(z_0 | z_t, c).

The network's conditioner says how the image reaches its layers; coordinates are concatenated to
the state, class and scalars go to the embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["HEALTHY", "Condition"]

HEALTHY = 0  # class index of healthy volumes, everywhere; the null class is the index `classes`


@dataclass(frozen=True)
class Condition:
    """Conditions of a batch, each optional.

    Arguments:
        image: an encoded image, on the grid of the network
        label: class index; `HEALTHY` is 0, the null class is the number of classes
        mixture: shares of all classes and of the null class, in place of the label; their
            embeddings are mixed
        scalars: standardised numbers such as age or spacing
        guidance: weight of a guidance that the network has learnt, see `embedded`
        latent: random numbers that the network makes a sample with, in place of a mean
        reference: a state on which the network is conditioned through a bottleneck
        prepared: what the network's conditioner made of the image, volumes in nested tuples; None
            where it has not been asked yet, see `Network.prepare`
        coordinates: position of every state voxel in the full volume, in [-1, 1]
        law: E[z_1], of kernels whose states end in a law of their own in every voxel
    """

    image: Float[Tensor, "b k d h w"] | None = None
    label: Int[Tensor, "b"] | None = None
    mixture: Float[Tensor, "b l"] | None = None
    scalars: Float[Tensor, "b n"] | None = None
    guidance: Float[Tensor, "b"] | None = None
    latent: Float[Tensor, "b n"] | None = None
    coordinates: Float[Tensor, "b 3 d h w"] | None = None
    reference: Float[Tensor, "b _ _ _ _"] | None = None
    law: Float[Tensor, "b _ _ _ _"] | None = None
    prepared: tuple[Any, ...] | None = None

    def replace(self, **changes: Any) -> "Condition":
        """The same condition with some fields changed; another image is not prepared yet."""
        if "image" in changes:
            changes = {"prepared": None, **changes}
        return replace(self, **changes)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Condition":
        """The function applied to every tensor present, for example to slice or move the batch."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Condition(**{k: _mapped(v, function) for k, v in values.items()})


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, tuple):
        return tuple(_mapped(inner, function) for inner in value)
    return None if value is None else function(value)
