"""CUDA graphs of the pretend device: a recording replays its operations on the same memory.

What is computed on the host while a graph is recorded is not done again, and neither is what runs
between two replays: results are those of a real graph. Waiting for the device during a recording
is refused, as by CUDA (docs.nvidia.com, CUDA C++ Programming Guide, "Prohibited and Unhandled
Operations"), and so are copies from or to memory of the host that is not pinned.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._mode_utils import no_dispatch
from torch.utils._pytree import tree_leaves

from pretend_cuda.record import Device

__all__ = ["Graph", "capturing"]


class Graph:
    """In place of `torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.pool: object = None

    def record(self, func: Any, args: Any, kwargs: Any, made: Any) -> None:
        """One operation, whose tensors stay alive as long as the graph does."""
        self.operations.append((func, args, kwargs, made))

    def replay(self) -> None:
        """All operations again, in order."""
        from pretend_cuda.tensors import computed

        device = Device.active
        assert device is not None, "graphs need the pretend device"
        device.launches += 1
        with torch.no_grad():
            for func, args, kwargs, made in self.operations:
                again = computed(func, args, kwargs)
                with no_dispatch():
                    for old, new in zip(tree_leaves(made), tree_leaves(again), strict=True):
                        # results in place, and views of what is there
                        if isinstance(old, Tensor) and old.data_ptr() != new.data_ptr():
                            old.copy_(new)


@contextlib.contextmanager
def capturing(graph: Graph, pool: object = None, **named: Any) -> Iterator[None]:
    """In place of `torch.cuda.graph`."""
    device = Device.active
    assert device is not None, "graphs need the pretend device"
    assert device.graph is None, "one graph is recorded at a time"
    graph.pool, device.graph = pool, graph
    try:
        yield
    finally:
        device.graph = None
