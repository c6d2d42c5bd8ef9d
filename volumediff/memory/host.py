"""Tensors that wait in host memory, and how to tell them from those of the device.

Where everything lies on the CPU, or is fake, an address does not say which of the two a tensor
stands for. Host tensors are therefore made here and nowhere else.
"""

import threading
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["empty", "is_host"]

_known: "weakref.WeakSet[torch.UntypedStorage]" = weakref.WeakSet()
_now = threading.local()


def empty(shape: Sequence[int], dtype: torch.dtype, like: Tensor) -> Tensor:
    """An uninitialized host tensor, pinned if `like` is on a CUDA device."""
    # The storage counts as host memory from its first moment: whoever watches sees it made.
    _now.making = True
    try:
        tensor = torch.empty(tuple(shape), dtype=dtype, device="cpu", pin_memory=like.is_cuda)
    finally:
        _now.making = False
    _known.add(tensor.untyped_storage())
    return tensor


def is_host(thing: Tensor | torch.UntypedStorage) -> bool:
    """Whether the memory was made by `empty`, or is being made."""
    if getattr(_now, "making", False):
        return True
    return (thing.untyped_storage() if isinstance(thing, Tensor) else thing) in _known
