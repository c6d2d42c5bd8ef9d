r"""Exact execution in slabs: a network on a whole volume, with a few planes of it at a time.

Group normalization is the only operation whose output voxel depends on the whole volume, and it
does so through a mean and a variance per group. The recorded pass is therefore cut there:

    stored    volumes that are kept whole: what a normalization or a convolution reads and what it
              took convolutions to make
    lazy      everything between: made slab by slab, with halos, whenever a stored volume is

Statistics are accumulated while their volume is made, slab by slab, and merged exactly (Chan et
al. 1979). Slabs differ from one piece by rounding alone.

Backward, the same happens in reverse; see `volumediff.memory.backward`. Stored volumes that only
one operation reads can be dropped after the forward pass and made again from those before them:
that is checkpointing, with the statistics already known.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from volumediff.memory.backward import Backward
from volumediff.memory.domain import ALONE, Domain
from volumediff.memory.execution import Execution
from volumediff.memory.graph import record
from volumediff.memory.pass_plan import PassPlan

__all__ = ["stream"]

# In one piece, both sides of a normalization are there at once: more than a network needs that
# runs without slabs. So inference is cut where volumes are shared for the sake of memory.
PIECES = 4


def stream(
    function: Callable[..., Tensor],
    x: Tensor,
    *arguments: Any,
    slab: int | None,
    offload: bool = False,
    checkpoint: int = 0,
    recompute_skips: bool = False,
    domain: Domain = ALONE,
) -> Tensor:
    """function(x, *arguments), computed in slabs; differentiable.

    Activations have the dtype of x, also under autocast.

    Arguments:
        function: of a volume (b, c, d, h, w), made of the package's layers
        slab: planes along d that are computed at a time; None for all, or, in inference over
            several processes, for a quarter of each process's
        offload: keep stored volumes, and their gradients, in host memory
        checkpoint: for the backward pass, keep only what several operations read, on this number
            of grids, finest first
        recompute_skips: without gradients, compute the skips of the finest grid again, slab by
            slab, where the decoder reads them, instead of keeping them
        domain: processes that share the volume; all of them call with the same arguments, and get
            the same output and the same gradients

    Raises:
        NotImplementedError: the function does something that cannot be cut
    """
    with _no_autocast(x.device):
        graph = record(function, x, *arguments)
    small = list(
        {id(t): t for n in graph.nodes if n.operation for t in n.operation.small}.values()
    )
    given = (*graph.sources, *small)
    training = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    recompute_skips = recompute_skips and not training
    plan = PassPlan(
        graph,
        slab=slab,
        offload=offload,
        checkpoint=checkpoint if training else 0,
        recompute_skips=recompute_skips,
        domain=domain,
        pieces=1 if training or domain.size == 1 else PIECES,
    )
    execution = Execution(plan, training=training)
    if training:
        return _Streamed.apply(execution, len(graph.sources), *graph.sources, *small)
    with torch.no_grad(), _no_autocast(x.device):
        return execution.forward()


def _no_autocast(device: torch.device) -> torch.autocast:
    """Nodes are recorded with the dtypes that they will have."""
    return torch.autocast(device.type, enabled=False)


class _Streamed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, execution: Execution, sources: int, *given: Tensor) -> Tensor:
        # Saved for the sake of torch's check that nothing of it was changed since.
        ctx.save_for_backward(*given)
        ctx.execution, ctx.small = execution, [id(t) for t in given[sources:]]
        with _no_autocast(given[0].device):
            return execution.forward()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.execution is None:
            raise RuntimeError("the gradients of a streamed network can be asked for only once")
        _ = ctx.saved_tensors
        execution, ctx.execution = ctx.execution, None
        with _no_autocast(grad.device):
            back = Backward(execution)
            back.propagate(grad)
        of_small = (back.small_gradients.get(name) for name in ctx.small)
        return None, None, *back.source_gradients(), *of_small
