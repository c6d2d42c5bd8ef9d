"""Processes of one training: how many there are, and sums over them.

Gradients are summed over processes by ourselves, at the step border and in one fixed order: it
works for any number of players and unused parameters, and accumulation needs no special case.
"""

import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from importlib.util import find_spec
from typing import TypeVar

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from accelerate.utils import broadcast_object_list
from torch import Tensor

from volumediff.errors import DataError, UsageError
from volumediff.settings.run_config import RunConfig

__all__ = ["broadcast_module", "leave", "mean_gradients", "on_main", "start", "timeout", "total"]

Result = TypeVar("Result")

# Gradients travel in flat pieces of this many numbers (64 MiB of float32).
BUCKET = 1 << 24


def start(config: RunConfig) -> Accelerator:
    """The process group, checked against what was asked for.

    Raises:
        UsageError: another number of processes than launched, or a tracker is not installed
    """
    for name in config.trackers:
        if find_spec(name) is None:
            raise UsageError(f"trackers: {name} is not installed; pip install {name} or drop it.")
    accelerator = Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision="no",
        log_with=list(config.trackers) or None,
        project_dir=str(config.output),
        step_scheduler_with_optimizer=False,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timeout(config))],
    )
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    asked = config.processes.number or launched
    if accelerator.num_processes != asked or launched != accelerator.num_processes:
        raise UsageError(
            f"processes.number: {asked} requested, {launched} launched, "
            f"{accelerator.num_processes} joined; launch with torchrun --standalone "
            "--nproc_per_node N -m volumediff train ..."
        )
    return accelerator


def timeout(config: RunConfig) -> timedelta:
    """How long a process waits for another one in a step."""
    return timedelta(seconds=config.processes.timeout_s)


def leave(code: int = 0) -> None:
    """Ends the program of one of several processes, with everything written; does nothing alone.

    At once, without taking the process group down: where one process is done before another,
    threads of gloo may abort it in its last moment, and the launcher reports a failure.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def on_main(
    accelerator: Accelerator, function: Callable[[], Result], *, local: bool = False
) -> Result | None:
    """Runs a function in the main process alone; its error reaches all of them.

    Arguments:
        local: the result cannot travel (an open file): the other processes get None
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            result = function()
        except (UsageError, DataError) as caught:
            error = caught
    if accelerator.num_processes > 1:
        text = None if error is None else (type(error) is UsageError, str(error))
        box = [text, None if local else result]
        broadcast_object_list(box)
        if error is None and box[0] is not None:
            error = (UsageError if box[0][0] else DataError)(box[0][1])
        result = result if accelerator.is_main_process else box[1]
    if error is not None:
        raise error
    return result


def total(accelerator: Accelerator, values: list[float]) -> list[float]:
    """Sums of numbers over processes."""
    if accelerator.num_processes == 1:
        return values
    mine = torch.tensor(values, dtype=torch.float64, device=accelerator.device)
    return accelerator.reduce(mine, reduction="sum").tolist()


def mean_gradients(accelerator: Accelerator, parameters: Iterable[Tensor]) -> None:
    """Replaces every gradient by its mean over processes; missing ones count as zero."""
    if accelerator.num_processes == 1:
        return
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        size += parameter.numel()
        if size >= BUCKET:
            _mean(accelerator, bucket)
            bucket, size = [], 0
    if bucket:
        _mean(accelerator, bucket)


def _mean(accelerator: Accelerator, tensors: list[Tensor]) -> None:
    flat = torch.cat([t.flatten() for t in tensors])
    pieces = accelerator.reduce(flat, reduction="mean").split([t.numel() for t in tensors])
    for tensor, piece in zip(tensors, pieces, strict=True):
        tensor.copy_(piece.view_as(tensor))


def broadcast_module(accelerator: Accelerator, module: torch.nn.Module) -> None:
    """Gives every process the main process's weights and buffers."""
    if accelerator.num_processes == 1:
        return
    for tensor in module.state_dict().values():
        torch.distributed.broadcast(tensor, src=0)
