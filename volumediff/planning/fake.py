"""Models without memory: tensors with shape, dtype and layout, but without values.

Everything runs as it would on real tensors, at no cost in memory and little in time. Where the
program asks a tensor for a number, it gets one half, zero or False.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from volumediff.networks._attention import Attention
from volumediff.networks._transformer import TokenAttention
from volumediff.settings.run_config import RunConfig
from volumediff.tasks import Task, build_task

__all__ = ["fake_task"]

ATTENTION = (Attention, TokenAttention)
# Kernels of the GPU that never store the scores: on the CPU their twin stands for them.
FUSED = ("flash", "efficient", "cudnn", "xformers")


@contextmanager
def fake_task(config: RunConfig, *, training: bool = False) -> Iterator[Task]:
    """The task of a configuration; its tensors, and those made inside the block, are fake.

    Arguments:
        training: whether it is to have what training alone needs, such as a teacher

    Raises:
        UsageError: parts of the configuration do not fit
    """
    with torch.device("meta"):
        task = build_task(config)
        if training:
            task.begin_training(None, fresh=True)
    with FakeTensorMode(allow_non_fake_inputs=True), _Numbers():
        for module in (*task.module.modules(), *task.training_only.modules()):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    made = nn.Parameter(_fake(parameter), requires_grad=parameter.requires_grad)
                    setattr(module, name, made)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    setattr(module, name, _fake(buffer))
            if isinstance(module, ATTENTION) and module.backend in FUSED:
                module.backend = "auto"
        yield task


def _fake(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")


class _Numbers(TorchDispatchMode):
    """Answers in place of fake tensors where an operation depends on values."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            if args[0].dtype.is_floating_point:
                return 0.5
            return False if args[0].dtype == torch.bool else 0
        if func is torch.ops.aten.bincount.default:
            least = (kwargs or {}).get("minlength", args[2] if len(args) > 2 else 0)
            return torch.empty(least, dtype=torch.int64)
        return func(*args, **(kwargs or {}))
