"""Passes of fixed shapes as CUDA graphs: kernels are recorded once, and then launched together.

A step on a small state is short of time for its launches, not for its kernels. A graph has the
same kernels on the same numbers, and costs one launch. What it needs is that nothing depends on
the host: shapes, addresses and the order of operations are those of the recording. Inputs are
copied to where the graph reads them, and what it gives is copied out, so that callers may keep it.

References:
    docs.pytorch.org, CUDA semantics, "CUDA Graphs"
"""

from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from volumediff.errors import UsageError

__all__ = ["GraphedPass"]

# Runs before a recording, in which libraries make their choices and their workspaces.
WARM_UPS = 3
# Of one pass: training, validation, and a smaller last batch of each.
MOST = 4


class GraphedPass:
    """A pass of a module over volumes, by graphs; without a GPU, or watched by hooks, as it is.

    Arguments:
        module: whose weights it reads
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._recorded: dict[Hashable, _Recording] = {}
        self._pool: Any = None
        # Graphs of one pass share memory: the launch of one overwrites what another keeps.
        self.launched = 0

    @property
    def pool(self) -> Any:
        """Memory that all graphs of the pass share, and nothing else."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def __call__(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        """function(*arguments): tensors, and tuples of them of any depth.

        Raises:
            UsageError: the volumes have had too many shapes; in the backward pass, another call
                came in between
        """
        tensors = list(_tensors(arguments))
        # Who looks into a pass, by hooks, sees its tensors only where it runs as it is.
        watched = any(part._forward_hooks for part in self.module.modules())
        if tensors[0].device.type != "cuda" or watched:
            return function(*arguments)
        weights = [p for p in self.module.parameters() if p.requires_grad]
        training = torch.is_grad_enabled() and bool(
            weights or any(t.requires_grad for t in tensors)
        )
        like = tuple((t.shape, t.dtype, t.requires_grad and training) for t in tensors)
        # Weights that moved are other weights.
        key = (training, like, tuple(p.data_ptr() for p in self.module.parameters()))
        if key not in self._recorded:
            if len(self._recorded) == MOST:
                raise UsageError(
                    f"memory.cuda_graphs takes volumes of {MOST} shapes at most, and got another, "
                    f"{tuple(tensors[0].shape)}; set it to false, or prepare volumes of one size"
                )
            recording = _Recording(function, arguments, weights if training else [], self)
            self._recorded[key] = recording
        recording = self._recorded[key]
        if not training:
            return recording.forward(tensors)
        return _Replayed.apply(recording, *tensors, *weights)


class _Recording:
    """A pass, and with weights or inputs that take gradients its way back, as graphs."""

    def __init__(
        self,
        function: Callable[..., Tensor],
        arguments: tuple[Any, ...],
        weights: list[Tensor],
        owner: GraphedPass,
    ) -> None:
        self.owner = owner
        training = torch.is_grad_enabled()
        given = list(_tensors(arguments))
        self.inputs = [
            t.detach().clone().requires_grad_(t.requires_grad and training) for t in given
        ]
        arguments = _rebuilt(arguments, iter(self.inputs))
        self.places = [i for i, t in enumerate((*self.inputs, *weights)) if t.requires_grad]
        wanted = [t for t in (*self.inputs, *weights) if t.requires_grad] if training else []
        warm = torch.cuda.Stream()
        warm.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm):
            for _ in range(WARM_UPS):
                output = function(*arguments)
                if wanted:
                    torch.autograd.grad(output, wanted, output.detach(), allow_unused=True)
        torch.cuda.current_stream().wait_stream(warm)
        del output
        self._forward = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._forward, pool=owner.pool):
            output = function(*arguments)
        if wanted:
            self.grad = torch.empty_like(output)
            self._backward = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._backward, pool=owner.pool):
                self.gradients = torch.autograd.grad(output, wanted, self.grad, allow_unused=True)
        self.output = output.detach()

    @torch.no_grad()
    def forward(self, tensors: list[Tensor]) -> Tensor:
        """The output for these inputs."""
        for fixed, tensor in zip(self.inputs, tensors, strict=True):
            fixed.copy_(tensor)
        self._forward.replay()
        self.owner.launched += 1
        return self.output.clone()

    def backward(self, grad: Tensor) -> dict[int, Tensor]:
        """Gradients by the places of inputs and weights, in memory of their own."""
        self.grad.copy_(grad)
        self._backward.replay()
        found = {i: g for i, g in zip(self.places, self.gradients, strict=True) if g is not None}
        # The next replay writes into these, and gradients may be kept and added to.
        made = [torch.empty_like(g) for g in found.values()]
        torch._foreach_copy_(made, list(found.values()))
        return dict(zip(found, made, strict=True))


class _Replayed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, recording: _Recording, *tensors: Tensor) -> Tensor:
        ctx.recording, ctx.count = recording, len(tensors)
        output = recording.forward(list(tensors[: len(recording.inputs)]))
        ctx.launch = recording.owner.launched
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.launch != ctx.recording.owner.launched:
            raise UsageError(
                "a loss that calls a network more than once before its backward pass cannot have "
                "memory.cuda_graphs, which keeps the activations of the last call; set it to false"
            )
        found = ctx.recording.backward(grad)
        return None, *(found.get(i) for i in range(ctx.count))


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in tuples of any depth."""
    if isinstance(value, tuple):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, Tensor):
        yield value


def _rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The same tuples with other tensors."""
    if isinstance(value, tuple):
        return tuple(_rebuilt(part, tensors) for part in value)
    return next(tensors) if isinstance(value, Tensor) else value
