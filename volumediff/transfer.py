"""Tensors on their way to a GPU, for which the host does not wait.

A copy out of ordinary memory makes the host wait until the device has done all that it was given;
one out of pinned memory is only launched. Pinned blocks are kept until their copy is done.
https://docs.pytorch.org/docs/stable/notes/cuda.html, "Use pinned memory buffers"
"""

import torch
from torch import Tensor

__all__ = ["sent"]


def sent(x: Tensor, device: torch.device | str, *, dtype: torch.dtype | None = None) -> Tensor:
    """The tensor on a device, in a dtype; what lies there already comes back as it is."""
    place = torch.device(device)
    if place.type != "cuda" or x.device.type != "cpu":
        return x.to(device=place, dtype=dtype)
    return x.to(dtype=dtype).pin_memory().to(place, non_blocking=True)
