"""FSDP2: weights, gradients and moments are divided among the processes.

Each holds a share of every tensor along its first axis. The weights of a residual block are
brought together when it is run and given up again afterwards; its gradients are averaged and
divided while the backward pass goes on.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from volumediff.batch import Batch
from volumediff.distributed.data_parallel import DataParallel, Loss, LossModule
from volumediff.memory.shares import whole_tensor
from volumediff.networks._block import Recomputable
from volumediff.networks._streamable import Streamable

__all__ = ["Sharded"]


class Sharded(DataParallel):
    """torch's `fully_shard` of all players.

    Arguments:
        players: trained modules by player, on their device
        loss: of a player
        blockwise: whether residual blocks are brought together one by one. Passes in slabs come
            back to them many times, and gradients inside a loss give them up too early: there
            all weights are at hand throughout a step
        channels_last: layout of the activations; divided weights cannot have it

    References:
        Zhao et al. (2023), PyTorch FSDP: Experiences on scaling fully sharded data parallel,
        arXiv:2304.11277
    """

    def __init__(
        self,
        players: Mapping[str, nn.Module],
        loss: Loss,
        *,
        blockwise: bool,
        channels_last: bool,
    ) -> None:
        root = LossModule(players, loss)
        for parameter in root.parameters():
            parameter.data = parameter.data.contiguous()
        if channels_last:
            for module in root.modules():
                if isinstance(module, Recomputable | Streamable):
                    module.register_forward_pre_hook(_channels_last)
        device = next(root.parameters()).device
        mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        self._main = torch.distributed.get_rank() == 0
        blocks = [m for m in root.modules() if blockwise and isinstance(m, Recomputable)]
        for block in reversed(blocks):  # inner ones before those around them
            fully_shard(block, mesh=mesh)
        self._root = fully_shard(root, mesh=mesh)
        self._units = [self._root, *blocks]
        for unit, before in zip(self._units[1:], self._units[:-1], strict=True):
            # In this order, whatever passes a process made alone in between.
            unit.set_modules_to_backward_prefetch([before])

    def _exchanging(self, player: str, wanted: bool) -> AbstractContextManager[None]:
        self._root.set_requires_gradient_sync(wanted)
        return nullcontext()

    def _loss(self, player: str, batch: Batch) -> Float[Tensor, "n"]:
        return self._root(player, batch)

    @contextmanager
    def whole(self) -> Iterator[None]:
        for unit in self._units:
            unit.set_reshard_after_forward(False, recurse=False)
            unit.unshard()
        try:
            yield
        finally:
            for unit in self._units:
                unit.set_reshard_after_forward(unit is not self._root, recurse=False)
                unit.reshard()

    def gathered(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, tensor in tensors.items():
            whole = whole_tensor(tensor)
            if self._main:
                found[name] = whole.cpu()
        return found

    def share(self, tensor: Tensor, like: Tensor) -> Tensor:
        if not isinstance(like, DTensor):
            return tensor
        # Every process has read the tensor: nothing is sent, and only the share is kept.
        placed = distribute_tensor(
            tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None
        )
        return placed.clone()


def _channels_last(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Volumes in this layout; convolutions take it over from their input."""
    return tuple(
        a.contiguous(memory_format=torch.channels_last_3d)
        if isinstance(a, Tensor) and a.ndim == 5
        else a
        for a in arguments
    )
