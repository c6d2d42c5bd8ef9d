"""Cost of a volume: evaluations of the network, or of the encoder of an autoencoder, and peak
memory of the GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

__all__ = ["Cost", "counted"]


@dataclass
class Cost:
    """The cost of one volume; the time is the batch's to take.

    Arguments:
        network_calls: evaluations of the network on one state; a batch of two is two
        peak_gb: largest memory that tensors held on a CUDA device; None elsewhere, where the
            process has no such counter
    """

    network_calls: int = 0
    peak_gb: float | None = None


@contextmanager
def counted(model: nn.Module, *others: nn.Module) -> Iterator[Cost]:
    """Counts what happens inside the block; `peak_gb` is known at its end.

    Arguments:
        model: whose part `counted` is counted, or the module itself where it names none
        others: that work beside it on the same device
    """
    networks = [getattr(each, "counted", each) for each in (model, *others)]
    device = next(model.parameters(), torch.empty(0)).device
    cost = Cost()

    def count(network: nn.Module, arguments: tuple[Any, ...]) -> None:
        cost.network_calls += len(arguments[0])

    handles = [network.register_forward_pre_hook(count) for network in networks]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        yield cost
    finally:
        for handle in handles:
            handle.remove()
        if device.type == "cuda":
            cost.peak_gb = torch.cuda.max_memory_allocated(device) / 1e9
