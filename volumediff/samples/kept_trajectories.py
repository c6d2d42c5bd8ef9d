"""Trajectories that are computed once and kept on the disk, for students that learn from them."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from jaxtyping import Float
from torch import Tensor

from volumediff.distributed.mesh import turn
from volumediff.distributed.processes import wait
from volumediff.errors import UsageError
from volumediff.storage.cache import Cache, CacheEntry

__all__ = ["KeptTrajectories"]

GB = 1e9


@dataclass(frozen=True, eq=False)
class KeptTrajectories:
    """States of trajectories by their number, memory-mapped.

    Arguments:
        entries: of the cache, one per trajectory
    """

    entries: Sequence[CacheEntry]

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self.entries)

    def read(self, numbers: Sequence[int]) -> Float[Tensor, "b m k d h w"]:
        """The states of some of them, in float32, on the CPU."""
        found = []
        for number in numbers:
            states = self.entries[number].load("states")
            assert states is not None, "every entry has them"
            found.append(torch.from_numpy(np.array(states, dtype=np.float32)))
        return torch.stack(found)

    @classmethod
    def made(
        cls,
        walk: Callable[[int], Float[Tensor, "1 m k d h w"]],
        *,
        count: int,
        size: int,
        dtype: str,
        fingerprint: Mapping[str, Any],
        cache: Cache,
        accelerator: Accelerator,
    ) -> "KeptTrajectories":
        """Computes those that are missing, shared by the processes.

        Arguments:
            walk: number -> states of a trajectory
            size: bytes of one
            dtype: `float16` or `float32`, in which they are kept
            fingerprint: all that they depend on, beside their number
            cache: where they are kept

        Raises:
            UsageError: the disk has no room for them
        """

        def described(number: int) -> tuple[str, dict[str, Any]]:
            return f"trajectory-{number:05d}", {**fingerprint, "dtype": dtype, "number": number}

        def entry(number: int) -> CacheEntry:
            def make() -> tuple[dict[str, np.ndarray], dict[str, Any]]:
                states = walk(number)[0].float().cpu().numpy().astype(dtype)
                return {"states": states}, {"spacing_mm": [1.0, 1.0, 1.0]}

            return cache.entry(*described(number), make)

        missing = [n for n in range(count) if not cache.has(*described(n))]
        if missing:
            rank, world = turn(accelerator)
            _check_room(size, count=count, missing=len(missing), cache=cache)
            wait(accelerator)  # before any of them takes room
            for number in missing[rank::world]:
                entry(number)
            wait(accelerator)
        return cls([entry(n) for n in range(count)])


def _check_room(size: int, *, count: int, missing: int, cache: Cache) -> None:
    """Says how much room trajectories take; refuses where there is not as much.

    Arguments:
        size: bytes of one
        missing: how many of them are still to be written
    """
    cache.folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache.folder).free
    said = (
        f"student.kept: {count} trajectories take {count * size / GB:.3g} GB in {cache.folder}, "
        f"{missing * size / GB:.3g} GB are still to be written, {free / GB:.3g} GB are free there"
    )
    if missing * size > free:
        raise UsageError(
            f"{said}; make room, choose another data.cache, keep fewer, or set student.kept=0."
        )
    cache.report(f"{said}.")
