"""Normal numbers that are cut to an interval, accurate in both tails."""

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["cut_normal"]


def cut_normal(
    u: Float[Tensor, "b"], low: Float[Tensor, ""], high: Float[Tensor, ""]
) -> Float[Tensor, "b"]:
    """N(0, 1) between two ends, from uniform numbers: `high` at u = 0, and falling.

    Raises:
        ValueError: there is next to nothing of the density between the ends
    """
    # Above the middle the probabilities are close to 1; those of the mirror image are not.
    mirrored = float(low) > 0
    ends = -torch.stack([high, low]) if mirrored else torch.stack([low, high])
    below, up_to = torch.special.erfc(-ends / 2**0.5) / 2  # ndtr loses the lower tail
    if not float(up_to - below) > torch.finfo(ends.dtype).tiny:
        raise ValueError(
            "times: expected some of the density between low and high, got next to nothing; move "
            "its mean, or widen the interval."
        )
    if mirrored:
        return -torch.special.ndtri(below + (up_to - below) * u).clamp(max=-low)
    return torch.special.ndtri(up_to - (up_to - below) * u).clamp(min=low, max=high)
