"""Mean and deviation per channel of a stream of tensors, for what is to have unit variance."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

__all__ = ["channel_statistics"]

# A channel whose deviation is below this fraction of the largest one holds rounding errors only,
# such as through-plane details of one-slice volumes; dividing by it would blow them up.
CONSTANT = 1e-6


@torch.no_grad()
def channel_statistics(
    raws: Iterable[Float[Tensor, "_ k _ _ _"]],
) -> tuple[Float[Tensor, "k"], Float[Tensor, "k"]]:
    """Mean and deviation of each channel, in float64 on the CPU.

    Streaming: batches are merged by the update of Chan et al. (1979). A channel that is constant
    over all tensors has the deviation 1.

    Raises:
        ValueError: no tensors, values that are not finite, or nothing but constants
    """
    count, mean, squares = 0, torch.zeros(1), torch.zeros(1)
    for raw in raws:
        # one channel at a time: a float64 copy of a whole state would be the peak of memory
        parts = [torch.var_mean(raw[:, i].double(), correction=0) for i in range(raw.shape[1])]
        var_new, mean_new = (torch.stack(p).cpu() for p in zip(*parts, strict=True))
        number = raw[:, 0].numel()
        delta = mean_new - mean
        total = count + number
        squares = squares + var_new * number + delta.square() * (count * number / total)
        mean = mean + delta * (number / total)
        count = total
    if count == 0:
        raise ValueError("fit needs at least one volume, got none; check the training split.")
    std = (squares / count).sqrt()
    if not bool(torch.isfinite(std).all()):
        raise ValueError("fit met values that are not finite; run `volumediff check`.")
    if not bool(std.max() > 0):
        raise ValueError("fit met constant volumes only; check intensities and foreground.")
    std[std <= CONSTANT * std.max()] = 1.0
    return mean, std
