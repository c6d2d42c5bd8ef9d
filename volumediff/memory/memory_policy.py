r"""The memory policy: dtype, layout, recomputation, slabs, kernels; never what a network computes.

Checkpointing stores the input of a residual block instead of everything inside it and runs the
block again in the backward pass: the same operations on the same numbers, the same gradients. A
convolution of an enlarged volume stores the small one; its own arithmetic is not repeated. In
slabs, whole volumes are stored only where a layer needs them; see `volumediff.memory.streaming`.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from pydantic import StrictInt
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from volumediff.errors import UsageError
from volumediff.memory.cuda_graphs import GraphedPass
from volumediff.memory.domain import Domain, current_domain
from volumediff.memory.half_weights import with_half_weights
from volumediff.memory.precision import float32_products
from volumediff.memory.streaming import stream
from volumediff.networks._block import Recomputable
from volumediff.networks._layers import NormAct
from volumediff.networks._streamable import Streamable

__all__ = ["MemoryPolicy", "Replaced", "runs_in_slabs", "whole_passes_of"]

DTYPES = {
    "float32": torch.float32,
    "tf32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class MemoryPolicy:
    """How activations are held: dtype, layout, what is recomputed, cut, or kept elsewhere.

    All of it is written down: nothing is chosen by timing at run time, so that a resumed run does
    what the first session did.

    Arguments:
        dtype: of activations; weights stay in float32 and are cast layer by layer. float32 is
            IEEE float32 on every device; tf32 is float32 whose convolutions and matrix products a
            GPU computes in TF32, faster and to 3 digits; float16 is for GPUs without bfloat16:
            it ends at 65504, so that losses are scaled in training
        channels_last: weights, and with them activations, in torch.channels_last_3d
        checkpoint: recompute residual blocks, attention and enlarged volumes in the backward pass;
            a number does so on that many levels only, finest first
        slab: run networks and autoencoders in slabs of so many planes along d, exactly, in
            training and inference; None in one piece
        offload: keep what waits between layers, and its gradients, in host memory
        recompute_skips: in inference with slabs, compute the skips of the finest level again
            where they are read, instead of keeping them: a third more time for less memory
        fused: normalisation and activation by Triton kernels, on a GPU; equal to rounding. None
            where they can run: triton and a C compiler are there, and channels are last. True
            refuses a GPU where they cannot
        cuda_graphs: record a network's pass once per shape of volumes, and launch its kernels
            together from then on, on a GPU; equal to the bit. For volumes of one size, one process
            and a loss that calls the network once; memory of the pass stays with it

    Raises:
        ValueError: no positive number where one is expected, fused without channels_last, or
            cuda_graphs with slabs or host memory

    References:
        Chen et al. (2016), Training deep nets with sublinear memory cost, arXiv:1604.06174
    """

    dtype: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    checkpoint: bool | int = False
    slab: StrictInt | None = None  # true is no number of planes
    offload: bool = False
    recompute_skips: bool = False
    fused: bool | None = None
    cuda_graphs: bool = False

    def __post_init__(self) -> None:
        if self.slab is not None and self.slab < 1:
            raise ValueError(f"expected memory.slab of at least one plane, got {self.slab}.")
        if self.checkpoint < 0:
            raise ValueError(f"expected memory.checkpoint >= 0 levels, got {self.checkpoint}.")
        if self.fused and not self.channels_last:
            raise ValueError(
                "fused normalisation works on channels-last tensors: set channels_last to true, "
                "or fused to null"
            )
        if self.cuda_graphs and (self.slab is not None or self.offload):
            other = "offload" if self.slab is None else "slab"
            raise ValueError(
                f"memory.cuda_graphs records a pass in one piece, and memory.{other} cuts it into "
                "pieces that the host puts together: set one of them to false or null"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype to cast the network's input to."""
        return DTYPES[self.dtype]

    def arithmetic(self) -> AbstractContextManager[None]:
        """For everything that runs under the policy: how a GPU multiplies float32 numbers."""
        return float32_products("tf32" if self.dtype == "tf32" else "ieee")

    @property
    def streams(self) -> bool:
        """Whether networks run through the executor of `volumediff.memory.streaming`, as they do
        wherever processes share volumes."""
        return self.slab is not None or self.offload or current_domain().size > 1

    @property
    def levels(self) -> int:
        """On how many levels blocks are recomputed."""
        return sys.maxsize if self.checkpoint is True else int(self.checkpoint)

    def apply(self, model: nn.Module) -> None:
        """Puts the policy into effect on all networks in the module, whatever policy they had.

        Where processes share volumes, see `volumediff.memory.domain.sharing`, each runs them on
        its planes. Names and values of the weights stay. The layout follows the weights: a
        convolution with channels-last weights gives a channels-last output for any input.

        Raises:
            UsageError: graphs were asked for where processes share volumes
        """
        if self.cuda_graphs and current_domain().size > 1:
            raise UsageError(
                "memory.cuda_graphs records a pass of one process, and processes.domain shares "
                "each volume among several: set it to false, or processes.domain to 1."
            )
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        for parameter in model.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=layout)
        for module in model.modules():
            if isinstance(module, NormAct):
                module.fused = self.fused
            if isinstance(module, Recomputable):
                again = not self.streams and module.level < self.levels
                _replace(module, "forward", _recomputed if again else None)
        streamed = functools.partial(self._streamed, current_domain())
        for module, method in _whole_passes(model):
            cast = functools.partial(with_half_weights, module)
            plain = cast if self.torch_dtype != torch.float32 else None
            if self.cuda_graphs:
                plain = _graphed(GraphedPass(module), plain)
            _replace(module, method, streamed if self.streams else plain)
            if self.streams:
                module.__dict__[method].in_slabs = True

    def freeze(self, network: nn.Module) -> None:
        """For inference: kernels are kept in the dtype that they are cast to anyway.

        The same results with half the weights, where activations are in half precision.
        """
        for parameter in network.requires_grad_(False).parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.to(self.torch_dtype)

    def _streamed(
        self, domain: Domain, function: Callable[..., Tensor], *arguments: Any
    ) -> Tensor:
        return stream(
            function,
            *arguments,
            slab=self.slab,
            offload=self.offload,
            checkpoint=self.levels,
            recompute_skips=self.recompute_skips,
            domain=domain,
        )


def _whole_passes(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Methods that map volumes to volumes from end to end."""
    for module in model.modules():
        if isinstance(module, Streamable):
            yield from module.whole_passes


def whole_passes_of(model: nn.Module) -> dict[str, "Replaced"]:
    """Passes over volumes that a policy runs in another way than the class has them, by name."""
    names = {id(module): name for name, module in model.named_modules()}
    return {
        f"{names[id(module)]}.{method}": module.__dict__[method]
        for module, method in _whole_passes(model)
        if method in module.__dict__
    }


def runs_in_slabs(module: nn.Module, method: str) -> bool:
    """Whether a method of a module runs in slabs, so that nothing within it is seen whole."""
    found = vars(module).get(method)
    return isinstance(found, Replaced) and found.in_slabs


def _graphed(graphed: GraphedPass, how: Callable[..., Tensor] | None) -> Callable[..., Tensor]:
    """A pass by graphs of what `how` makes of it."""
    if how is None:
        return graphed

    def run(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return graphed(functools.partial(how, function), *arguments)

    return run


def _replace(module: nn.Module, method: str, how: Callable[..., Tensor] | None) -> None:
    """Runs a method as `how` says, or as the class has it."""
    # An attribute of the instance shadows the method of the class.
    module.__dict__.pop(method, None)
    if how is not None:
        setattr(module, method, Replaced(module, method, how))


def _recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Non-reentrant checkpointing; blocks draw no random numbers, no generator has to be kept."""
    return checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)


class Replaced:
    """A method of a module that is run in another way.

    Arguments:
        how: function of the method of the class and its arguments

    Attributes:
        in_slabs: whether it is run slab by slab
    """

    in_slabs = False

    def __init__(self, module: nn.Module, method: str, how: Callable[..., Tensor]) -> None:
        self.module, self.method, self.how = module, method, how
        functools.update_wrapper(self, getattr(type(module), method))

    def __call__(self, *arguments: Any) -> Tensor:
        function = functools.partial(getattr(type(self.module), self.method), self.module)
        return self.how(function, *arguments)
