r"""How a network is held and run: dtype, memory layout, recomputation. Never what it computes.

Checkpointing stores the input of a residual block instead of everything inside it and runs the
block again in the backward pass: the same operations on the same numbers, the same gradients.
"""

import ctypes
import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from volumediff.networks._attention import Attention
from volumediff.networks._layers import ResidualBlock

__all__ = ["MemoryPolicy", "retain_heap"]


@dataclass(frozen=True)
class MemoryPolicy:
    """Dtype of the activations, layout of the tensors, and whether blocks are recomputed.

    Arguments:
        dtype: of activations; weights stay in float32 and are cast layer by layer
        channels_last: weights, and with them activations, in torch.channels_last_3d
        checkpoint: recompute residual blocks and attention in the backward pass
        slab: execute the network in slabs of so many planes along d; None in one piece
        offload: keep what waits between layers in host memory

    References:
        Chen et al. (2016), Training deep nets with sublinear memory cost, arXiv:1604.06174
    """

    dtype: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    checkpoint: bool = False
    slab: int | None = None
    offload: bool = False

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype to cast the network's input to."""
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    def apply(self, network: nn.Module) -> None:
        """Puts the policy into effect on the network, whatever policy it had before.

        Names and values of the weights stay. The layout follows the weights: a convolution with
        channels-last weights gives a channels-last output for any input.
        """
        layout = torch.channels_last_3d if self.channels_last else torch.contiguous_format
        for parameter in network.parameters():
            if parameter.ndim == 5:
                parameter.data = parameter.data.contiguous(memory_format=layout)
        for module in network.modules():
            if isinstance(module, ResidualBlock | Attention):
                # An attribute of the instance shadows the method of the class.
                module.__dict__.pop("forward", None)
                if self.checkpoint:
                    module.forward = _Recomputed(module)


class _Recomputed:
    """The forward method of a module under non-reentrant checkpointing."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        functools.update_wrapper(self, type(module).forward)

    def __call__(self, *args: object) -> torch.Tensor:
        method = functools.partial(type(self.module).forward, self.module)
        # Blocks draw no random numbers, so no generator state has to be kept.
        return checkpoint(method, *args, use_reentrant=False, preserve_rng_state=False)


def retain_heap() -> bool:
    """Keeps freed memory in the process for the next tensor; True where it took effect.

    The allocator of glibc returns every block above 32 MiB to the kernel and gets a fresh one,
    cleared page by page, for the next tensor: at 64 channels and 64³ voxels that costs four times
    the arithmetic of an elementwise operation. For CPU training; the resident size stays at its
    peak, and may exceed the sum of the live tensors through fragmentation.
    """
    max_mapped, trim_threshold = -4, -1  # M_MMAP_MAX, M_TRIM_THRESHOLD of malloc.h
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(max_mapped, 0) and mallopt(trim_threshold, 2**31 - 1))
