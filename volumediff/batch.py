"""Samples to train on, as the loader gives them and as the network sees them."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.condition import Condition
from volumediff.kernels._base import UNCONDITIONAL, Kernel

__all__ = ["Batch", "NoisyBatch"]

Volume = Float[Tensor, "b c d h w"]
State = Float[Tensor, "b k d2 h2 w2"]


@dataclass(frozen=True)
class Batch:
    """Samples to train on.

    Arguments:
        x: volumes
        keys: one per sample; time and noise of the sample are drawn from it alone
        condition: what the denoiser is conditioned on, without images and mask
        images: volumes to condition on; they go through the state space as x does
        mask: a mask to condition on; it goes through the space as masks do
        region: 1 where there is noise: the state outside is clean, and the loss is inside
        hidden: 1 where the loss does not look: noise is there as elsewhere
        end: volumes at the noisy end of a cold kernel, in place of noise
        distance_mm: distance of every voxel from the surface of each label, for losses that ask
        noise: the fields that the loss corrupts volumes with, where the loader has drawn them from
            the keys: the same numbers
    """

    x: Volume
    keys: tuple[int, ...]
    condition: Condition = UNCONDITIONAL
    images: tuple[Float[Tensor, "b _ d h w"], ...] = ()
    mask: Float[Tensor, "b 1 d h w"] | None = None
    region: Float[Tensor, "b 1 d h w"] | None = None
    hidden: Float[Tensor, "b 1 d h w"] | None = None
    end: Volume | None = None
    distance_mm: Float[Tensor, "b _ d h w"] | None = None
    noise: Float[Tensor, "b _ _ _ _"] | None = None

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch on a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """The same batch in pinned memory, from which a device copies while others compute."""
        return self._mapped(lambda x: torch.empty_like(x, pin_memory=True).copy_(x))

    def record_stream(self, stream: Any) -> None:
        """Says that a `torch.cuda.Stream` uses this batch, whose memory belongs to another."""

        def record(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        self._mapped(record)

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        names = ("mask", "region", "hidden", "end", "distance_mm", "noise")
        others = {n: getattr(self, n) for n in names}
        return replace(
            self,
            x=function(self.x),
            condition=self.condition.map(function),
            images=tuple(function(image) for image in self.images),
            **{n: None if t is None else function(t) for n, t in others.items()},
        )


@dataclass(frozen=True, eq=False)
class NoisyBatch:
    """Samples as the network sees them in training.

    Arguments:
        kernel: with the law of the batch, where it has one
        condition: with images and mask, on the grid of the network
        z_0: clean states
        z_t: noisy states
        t: their times, in float64
        noise: that they were corrupted with
        m: 1 where the loss looks, in state space; None for everywhere
    """

    kernel: Kernel
    condition: Condition
    z_0: State
    z_t: State
    t: Float[Tensor, "b"]
    noise: State
    m: Float[Tensor, "b 1 d2 h2 w2"] | None
