"""The other side: volumes reflected about the middle of their foreground."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["mirrored"]


def mirrored(
    a: Float[Tensor, "b c d h w"], foreground: Bool[Tensor, "b 1 d h w"]
) -> Float[Tensor, "b c d h w"]:
    """The volume reflected along d about the middle of the foreground; zero from beyond."""
    result = torch.zeros_like(a)
    for i, inside in enumerate(foreground):
        planes = inside.any(dim=(0, 2, 3)).nonzero().flatten()
        if len(planes):
            low, high = int(planes[0]), int(planes[-1]) + 1
            result[i, :, low:high] = a[i, :, low:high].flip(1)
    return result
