"""Inference on volumes that processes share: one leads, the others join the passes of its model.

The first process of a domain runs the program: it reads, samples and writes, as one process alone
does. The others have loaded the same model and wait. Whenever a pass of the model begins, they are
told which one, and are given its arguments; the volumes in between are divided among all.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from volumediff.distributed import launch
from volumediff.distributed.mesh import Mesh
from volumediff.distributed.processes import leave
from volumediff.errors import DataError, UsageError
from volumediff.memory.domain import Domain
from volumediff.memory.memory_policy import whole_passes_of

__all__ = ["join", "shared_mesh"]

Pass = Callable[..., Tensor]
END = ""


def shared_mesh(domain: int) -> Mesh:
    """The mesh of a launch whose processes share each volume with others.

    From now on a process of `launch` is as many of them as share a volume.

    Arguments:
        domain: processes that share a volume

    Raises:
        UsageError: the launch has no multiple of them
    """
    if domain == 1:
        return Mesh()
    launch.begin("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    mesh = Mesh.of(domain=domain, timeout=launch.PATIENCE)
    firsts = list(range(0, launch.started(), domain))
    leaders = dist.new_group(firsts, backend="gloo", timeout=launch.PATIENCE)
    launch.divide(domain, leaders)
    return mesh


def join(module: nn.Module, domain: Domain, device: torch.device) -> None:
    """Makes the passes of a module those of all processes of a domain.

    In the first process it returns. In the others it never does: they join its passes, and end
    when it ends.

    Arguments:
        module: the same in all of them, built where they share volumes
        device: of the module
    """
    passes = whole_passes_of(module)
    if domain.rank > 0:
        _follow(passes, domain, device)
    leader = _Leader(domain, device)
    launch.lead(leader.end)
    for name, found in passes.items():
        found.how = leader.told(name, found.how)


class _Leader:
    """Tells the others of passes."""

    def __init__(self, domain: Domain, device: torch.device) -> None:
        self.domain, self.device, self.apart = domain, device, False

    def told(self, name: str, call: Pass) -> Pass:
        """A pass that the others join."""

        def joined(function: Pass, *arguments: Any) -> Tensor:
            tensors: list[Tensor] = []
            described = _described(arguments, tensors)
            if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
                raise UsageError(
                    "domain: gradients through the network are not shared by processes in "
                    "inference, and this method needs them; use domain 1."
                )
            if self.apart:
                raise DataError(
                    "a pass that processes share was not finished, and they are out of step; run "
                    "the command again."
                )
            self.apart = True
            _tell(self.domain, (name, described))
            for tensor in tensors:
                dist.broadcast(tensor.contiguous(), group=self.domain.group, group_src=0)
            try:
                output = call(function, *arguments)
            except (NotImplementedError, ValueError, UsageError):
                self.apart = False  # the others meet the same
                raise
            self.apart = False
            return output

        return joined

    def end(self) -> None:
        """Lets the others end."""
        if not self.apart:
            _tell(self.domain, (END, ()))


def _follow(passes: Mapping[str, Pass], domain: Domain, device: torch.device) -> None:
    """Joins passes until there are no more, and ends the program."""
    with torch.no_grad():
        while True:
            name, described = _tell(domain, None)
            if name == END:
                leave()
            arguments = _received(described, domain, device)
            try:
                passes[name](*arguments)
            except (NotImplementedError, ValueError, UsageError):
                continue  # the leader meets the same, and says so


def _tell(domain: Domain, words: Any) -> Any:
    """What the leader says, in all processes."""
    box = [words]
    dist.broadcast_object_list(box, group=domain.group, group_src=0)
    return box[0]


def _described(value: Any, tensors: list[Tensor]) -> Any:
    """An argument with the shape, dtype and layout of every tensor in its place."""
    if isinstance(value, tuple):
        return tuple(_described(v, tensors) for v in value)
    if not isinstance(value, Tensor):
        return value
    tensors.append(value)
    last = value.ndim == 5 and value.is_contiguous(memory_format=torch.channels_last_3d)
    return _Tensor(tuple(value.shape), value.dtype, last and not value.is_contiguous())


class _Tensor:
    """What a tensor will be like."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool) -> None:
        self.shape, self.dtype, self.channels_last = shape, dtype, channels_last


def _received(described: Any, domain: Domain, device: torch.device) -> Any:
    """An argument as the leader has it."""
    if isinstance(described, tuple):
        return tuple(_received(d, domain, device) for d in described)
    if not isinstance(described, _Tensor):
        return described
    tensor = torch.empty(described.shape, dtype=described.dtype, device=device)
    dist.broadcast(tensor, group=domain.group, group_src=0)
    if described.channels_last:
        tensor = tensor.contiguous(memory_format=torch.channels_last_3d)
    return tensor
