"""The launch that this process belongs to: one of several of torchrun or accelerate, or alone.

Only the variables that launchers set are read; a process group is made when one is needed.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

from volumediff.errors import DataError, UsageError

__all__ = ["is_main", "local_rank", "meet", "rank", "shared_out", "world"]

Item, Result = TypeVar("Item"), TypeVar("Result")

# Of an evaluation or a start, where one process may read large files while others wait.
PATIENCE = timedelta(hours=2)


def world() -> int:
    """Number of processes of the launch."""
    return _number("WORLD_SIZE", 1)


def rank() -> int:
    """This one, from 0."""
    return _number("RANK", 0)


def local_rank() -> int:
    """This one among those of its machine, from 0."""
    return _number("LOCAL_RANK", 0)


def is_main() -> bool:
    """Whether this is the process that prints, and writes what is written once."""
    return rank() == 0


def meet() -> None:
    """Waits for all processes of the launch; alone it does nothing."""
    if world() > 1:
        _group().barrier()


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
    _group().all_gather_object(parts, mine)
    found = [parts[i % world()][i // world()] for i in range(len(items))]
    for _, error in found:
        if error is not None:
            raise error
    return [result for result, _ in found]


def _group() -> Any:
    import torch.distributed as group

    if not group.is_initialized():
        group.init_process_group("gloo", timeout=PATIENCE)
    return group


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else default
