"""Noise of a chain of denoising steps: what each sample draws in each step, from its key alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.condition import Condition
from volumediff.randomness import normal
from volumediff.transfer import sent

__all__ = ["ChainNoise", "latents"]


@dataclass(frozen=True, eq=False)
class ChainNoise:
    """The noise of a batch of chains; called with the number of a step it gives a state.

    Arguments:
        keys: one per sample
        field: step -> noise in state space
        length: of the random latent that the network takes in every step; 0 for none
        device: of the latents
    """

    keys: tuple[int, ...]
    field: Callable[[int], Tensor]
    length: int = 0
    device: torch.device | str = "cpu"

    def __call__(self, step: int) -> Float[Tensor, "b k d h w"]:
        return self.field(step)

    def conditioned(self, condition: Condition, step: int) -> Condition:
        """The condition with the random latent of a step, where the network takes one."""
        if not self.length:
            return condition
        drawn = latents(self.keys, self.length, "noise", step, device=self.device)
        return condition.replace(latent=drawn)


def latents(
    keys: Sequence[int], length: int, *parts: int | str, device: torch.device | str = "cpu"
) -> Float[Tensor, "b n"]:
    """Random latents N(0, 1); each follows from its key and the parts alone.

    Arguments:
        length: n
    """
    drawn = [normal((length,), key, "latent", *parts) for key in keys]
    return sent(torch.stack(drawn), device)
