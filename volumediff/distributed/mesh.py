"""Where a process stands among all of a training: data × domain.

    domain 0   domain 1
    rank 0     rank 1       data 0: these share the planes of the same samples
    rank 2     rank 3       data 1: these have other samples

Neighbours along the domain axis are neighbours in rank, and so, as a rule, on one machine: they
exchange planes in every layer, those along the data axis gradients once per step.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch.distributed as dist
from accelerate import Accelerator

from volumediff.errors import UsageError
from volumediff.memory.domain import ALONE, Domain, current_domain

__all__ = ["Mesh", "MeshAxis", "turn"]

Line = TypeVar("Line", "MeshAxis", Domain)


@dataclass(frozen=True)
class MeshAxis:
    """Processes that differ in one coordinate of the mesh.

    Arguments:
        rank: of this process among them, from 0
        size: how many there are
        group: for what they say to each other; None for one process alone
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None


@dataclass(frozen=True)
class Mesh:
    """All processes of a training.

    Processes that share a sample have the same loss of it and the same gradients, those of the
    whole sample: the mean over all processes is the mean over samples.

    Arguments:
        data: those that see other samples, and the same planes of them
        domain: those that see other planes of the same samples
    """

    data: MeshAxis = MeshAxis()
    domain: Domain = ALONE

    @classmethod
    def of(cls, *, domain: int = 1, timeout: timedelta) -> "Mesh":
        """The mesh of all processes that were launched; every one of them takes part.

        Arguments:
            domain: processes that share a sample
            timeout: how long one waits for another before it gives up

        Raises:
            UsageError: their number is no multiple of `domain`
        """
        world = dist.get_world_size() if dist.is_initialized() else 1
        if world % domain:
            raise UsageError(
                f"processes.domain: {domain} processes are to share each volume, got {world} in "
                f"all; launch a multiple of {domain}."
            )
        if world == 1:
            return cls()
        rows = [list(range(first, first + domain)) for first in range(0, world, domain)]
        columns = [list(column) for column in zip(*rows, strict=True)]
        return cls(data=_axis(columns, timeout, MeshAxis), domain=_axis(rows, timeout, Domain))


def turn(accelerator: Accelerator) -> tuple[int, int]:
    """Rank and number of those that take turns in whole volumes; who shares them has one turn."""
    size = current_domain().size
    return accelerator.process_index // size, accelerator.num_processes // size


def _axis(lines: list[list[int]], timeout: timedelta, kind: type[Line]) -> Line:
    """This process's line of ranks; all processes make the groups of all lines."""
    if len(lines[0]) == 1:
        return kind()
    group, _ = dist.new_subgroups_by_enumeration(lines, timeout=timeout)
    return kind(dist.get_rank(group), dist.get_world_size(group), group)
