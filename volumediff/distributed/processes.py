"""Processes of one training: how many there are, and what they say to each other beside gradients.

In a step the clock of the processes' group runs, which ends the run when one of them keeps the
others waiting. Waits that have nothing to do with a step, such as for previews of the main
process, last as long as that process gives signs of life; what is said then goes over the hosts'
network.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

from volumediff.distributed import launch
from volumediff.distributed.accelerate_config import started_alone
from volumediff.distributed.meeting import Meeting, Silence
from volumediff.errors import DataError, UsageError
from volumediff.memory.domain import ALONE, sharing
from volumediff.settings.run_config import RunConfig

__all__ = [
    "broadcast_module",
    "gathered",
    "leave",
    "on_main",
    "others_watched",
    "start",
    "timeout",
    "total",
    "wait",
]

Result = TypeVar("Result")

# Of what processes say when all of them are there, and until the first clock is known.
OPENING = timedelta(minutes=5)
# How gloo's errors are known, which have no class of their own.
GLOO = ("gloo/transport", "Application timeout caused pair closure")


def start(config: RunConfig) -> Accelerator:
    """The process group, checked against what was asked for.

    Raises:
        UsageError: another number of processes than launched, or a tracker is not installed
    """
    for name in config.trackers:
        if find_spec(name) is None:
            raise UsageError(f"trackers: {name} is not installed; pip install {name} or drop it.")
    try:
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision="no",
            log_with=list(config.trackers) or None,
            project_dir=str(config.output),
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[
                InitProcessGroupKwargs(timeout=timeout(config)),
                DistributedDataParallelKwargs(
                    find_unused_parameters=True, gradient_as_bucket_view=True
                ),
            ],
        )
    except (ImportError, NotImplementedError, ValueError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise UsageError(f"accelerate: {reason}; see accelerate config.") from error
    if accelerator.num_processes > 1:
        _hosts().meeting.patience = timeout(config)
    if accelerator.num_processes == 1 and started_alone(os.environ):
        raise UsageError(
            "accelerate launch: one process was started, and its configuration has several: it "
            "starts no others on CPUs by itself; launch with torchrun --standalone "
            "--nproc_per_node N -m volumediff train ..."
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
    """How long a process waits for another one in a step, or for a sign of its life."""
    return timedelta(seconds=config.processes.timeout_s)


def leave(code: int = 0) -> None:
    """Ends the program of one of several processes, with everything written; does nothing alone.

    At once, without taking the process group down: where one process is done before another,
    threads of gloo may abort it in its last moment, and the launcher reports a failure.
    """
    if dist.is_available() and dist.is_initialized():
        launch.part()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


@dataclass(frozen=True)
class _Hosts:
    """All processes, over the network of their hosts.

    Arguments:
        group: for what they say when all of them are there
        meeting: where they wait for each other
    """

    group: dist.ProcessGroup
    meeting: Meeting


@cache
def _hosts() -> _Hosts:
    """Made by all processes at their first start."""
    rank, size = dist.get_rank(), dist.get_world_size()
    group = dist.new_group(backend="gloo", timeout=OPENING)
    host, here = os.environ["MASTER_ADDR"], None
    if rank == 0:
        here = dist.TCPStore(host, 0, is_master=True, timeout=OPENING, wait_for_workers=False)
    port = [None if here is None else here.port]
    dist.broadcast_object_list(port, group=group)
    store = here or dist.TCPStore(host, port[0], is_master=False, timeout=OPENING)
    return _Hosts(group, Meeting(rank, size, store, OPENING))


def _met() -> dist.ProcessGroup:
    """What processes talk over, once all of them are here."""
    hosts = _hosts()
    hosts.meeting.wait()
    # None goes on, and perhaps ends, before the others have heard that it came.
    dist.barrier(group=hosts.group)
    return hosts.group


def on_main(
    accelerator: Accelerator, function: Callable[[], Result], *, local: bool = False
) -> Result | None:
    """Runs a function in the main process alone; its error reaches all of them.

    Models that it builds share their volumes with nobody.

    Arguments:
        local: the result cannot travel (an open file): the other processes get None
    """
    result, error = None, None
    if accelerator.is_main_process:
        try:
            with sharing(ALONE):
                result = function()
        except (UsageError, DataError) as caught:
            error = caught
    if accelerator.num_processes > 1:
        text = None if error is None else (type(error) is UsageError, str(error))
        box = [text, None if local else result]
        dist.broadcast_object_list(box, group=_met())
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
    sums = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(sums, group=_met())
    return sums.tolist()


def gathered(accelerator: Accelerator, found: Any) -> list[Any]:
    """What every process found, in order of the processes."""
    if accelerator.num_processes == 1:
        return [found]
    everybody = [None] * accelerator.num_processes
    dist.all_gather_object(everybody, found, group=_met())
    return everybody


def wait(accelerator: Accelerator) -> None:
    """Returns when every process is here."""
    if accelerator.num_processes > 1:
        _met()


@contextmanager
def others_watched(config: RunConfig) -> Iterator[None]:
    """Ends with one line where another process has ended, or does not answer in time.

    Raises:
        DataError: in place of the error of the exchange that failed
    """
    try:
        yield
    except RuntimeError as error:
        reason = str(error)
        known = isinstance(error, dist.DistError | Silence)
        if not known and not any(text in reason for text in GLOO):
            raise
        raise DataError(
            "another process of this training ended, or did not answer for "
            f"{config.processes.timeout_s:g} s (processes.timeout_s); its own message says why. "
            "The same command goes on from the last checkpoint."
        ) from error


def broadcast_module(accelerator: Accelerator, module: torch.nn.Module) -> None:
    """Gives every process the main process's weights and buffers."""
    if accelerator.num_processes == 1:
        return
    for tensor in module.state_dict().values():
        dist.broadcast(tensor, src=0)
