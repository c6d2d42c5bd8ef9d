"""The launch that this process belongs to: one of several of torchrun or accelerate, or alone.

Only the variables that launchers set are read; a process group is made when one is needed.
"""

import atexit
import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from volumediff.errors import DataError, UsageError

__all__ = [
    "PATIENCE",
    "begin",
    "divide",
    "is_main",
    "lead",
    "local_rank",
    "meet",
    "part",
    "rank",
    "shared_out",
    "started",
    "world",
]

Item, Result = TypeVar("Item"), TypeVar("Result")

# Of an evaluation or a start, where one process may read large files while others wait.
PATIENCE = timedelta(hours=2)


class _Sharing:
    """Processes that share each volume work as one, under the first of them."""

    size = 1
    leaders: Any = None
    parting: Callable[[], None] | None = None


def started() -> int:
    """Number of processes that were started."""
    return _number("WORLD_SIZE", 1)


def world() -> int:
    """Number of processes of the launch; those that share volumes are one."""
    return started() // _Sharing.size


def rank() -> int:
    """This one, from 0."""
    return _number("RANK", 0) // _Sharing.size


def divide(size: int, leaders: Any) -> None:
    """Makes every so many processes one.

    Arguments:
        size: number of processes
        leaders: process group of the first ones
    """
    _Sharing.size, _Sharing.leaders = size, leaders


def lead(parting: Callable[[], None]) -> None:
    """Says what lets the processes go that work under this one."""
    _Sharing.parting = parting
    atexit.register(part)


def part() -> None:
    """Lets them go, once, before this process ends."""
    if _Sharing.parting is not None:
        parting, _Sharing.parting = _Sharing.parting, None
        parting()


def local_rank() -> int:
    """This one among those of its machine, from 0."""
    return _number("LOCAL_RANK", 0)


def is_main() -> bool:
    """Whether this is the process that prints, and writes what is written once."""
    return rank() == 0


def meet() -> None:
    """Waits for all processes of the launch; alone it does nothing."""
    if world() > 1:
        import torch.distributed as dist

        begin()
        dist.barrier(group=_Sharing.leaders)


def shared_out(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What a function gives for every item; each process of the launch computes its share.

    Arguments:
        function: one that gives the same in every process; what it gives travels between them

    Returns:
        for all items in their order, in every process

    Raises:
        UsageError, DataError: that of the first item which has one, in every process
    """
    if world() == 1:
        return [function(item) for item in items]
    mine: list[tuple[Result | None, Exception | None]] = []
    for item in items[rank() :: world()]:
        try:
            mine.append((function(item), None))
        except (UsageError, DataError) as error:
            mine.append((None, error))
    parts: list[Any] = [None] * world()
    import torch.distributed as dist

    begin()
    dist.all_gather_object(parts, mine, group=_Sharing.leaders)
    found = [parts[i % world()][i // world()] for i in range(len(items))]
    for _, error in found:
        if error is not None:
            raise error
    return [result for result, _ in found]


def begin(backend: str = "gloo") -> None:
    """Makes the process group of the launch, if there are several processes and it has none."""
    import torch.distributed as dist

    if started() > 1 and not dist.is_initialized():
        dist.init_process_group(backend, timeout=PATIENCE)


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
