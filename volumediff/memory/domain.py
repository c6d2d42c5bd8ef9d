r"""One volume over several processes: the planes that each has, and what they tell each other.

Of a volume of depth D, process r of n makes the planes

.. math:: \mathrm{own}_r(D) = \big[\lceil D r / n \rceil, \lceil D (r + 1) / n \rceil\big)

and holds copies of those planes of others that its operations read. Grids of different strides are
cut at the same places, so that copies are few. Copies travel point to point, forward from their
owners and backward, as gradients, to them. Sums over the volume, for the statistics of a group
normalization and for the gradients of weights, are sums over the processes.

What a pass is given, what it gives, and all of its gradients are the same in all processes:
whatever is around it need not know of them.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from volumediff.memory.norm_statistics import SlabMoments
from volumediff.memory.slabs import Range
from volumediff.memory.store import Store

__all__ = ["ALONE", "Domain", "current_domain", "sharing"]

# Gradients are summed in flat pieces of this many numbers (64 MiB of float32).
BUCKET = 1 << 24


@dataclass(frozen=True)
class Domain:
    """The processes that share each volume.

    Arguments:
        rank: of this process among them; 0 has the first planes
        size: how many there are
        group: what they talk over; None for one process alone, and for a plan, where planes of
            others are as many as they will be and have no values
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def assumed(cls, size: int) -> "Domain":
        """The process that holds most planes, among others that are not there: for a plan."""
        # The first share is never the smaller one; those in between have neighbours on both sides.
        return cls(rank=int(size > 2), size=size)

    def own(self, depth: int, rank: int | None = None) -> Range:
        """The planes that a process makes of a volume; none, perhaps, of one with few planes.

        Arguments:
            depth: planes of the volume
            rank: of the process, by default this one
        """
        rank = self.rank if rank is None else rank
        return -(-depth * rank // self.size), -(-depth * (rank + 1) // self.size)

    def fill(self, store: Store, held: Sequence[Range], depth: int) -> None:
        """Takes copies of the planes that others own, and gives them theirs.

        Arguments:
            held: of every process the planes that it holds, copies included
            depth: planes of the volume
        """
        for first, planes in self._swap(store, held, depth, back=False):
            store.write(first, planes)

    def fold(self, store: Store, held: Sequence[Range], depth: int) -> None:
        """Adds gradients of copies to those of the planes themselves; the copies' become zeros.

        Arguments:
            held, depth: as for `fill`
        """
        came = self._swap(store, held, depth, back=True)
        for peer in self._others():
            lo, hi = _common(self.own(depth, peer), held[self.rank])
            if lo < hi:
                store.write(lo, torch.zeros_like(store.read((lo, hi))))
        for first, planes in came:
            there = store.read((first, first + planes.shape[2]))
            store.write(first, there + planes)

    def merge(self, moments: SlabMoments, shape: Sequence[int], device: torch.device) -> None:
        """Makes the statistics of this process's planes those of the volume.

        Arguments:
            shape: (b, c, ...) of the volume
            device: of its planes
        """
        if self.group is None:
            return
        mine = torch.zeros(1 + 2 * shape[0] * shape[1], dtype=torch.float64, device=device)
        if moments.count:
            mine[0] = moments.count
            mine[1:] = torch.stack(moments.result()).flatten()
        parts = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(parts, mine, group=self.group)
        # In the order of the planes: all processes get the same bits.
        parts = [part for part in parts if part[0] > 0]
        both = torch.stack([part[1:].view(2, shape[0], shape[1]) for part in parts])
        moments.replace([int(part[0]) for part in parts], both[:, 0], both[:, 1])

    def total(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors by their sums over the processes."""
        if self.group is None:
            return
        for bucket in _buckets(tensors):
            flat = torch.cat([t.flatten() for t in bucket])
            dist.all_reduce(flat, group=self.group)
            sums = flat.split([t.numel() for t in bucket])
            for tensor, summed in zip(bucket, sums, strict=True):
                tensor.copy_(summed.view_as(tensor))

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _swap(
        self, store: Store, held: Sequence[Range], depth: int, *, back: bool
    ) -> list[tuple[int, Tensor]]:
        """Planes that others sent, each with the place of the first, in the order of the ranks.

        Arguments:
            back: from the copies to the owners
        """
        sent: list[dist.P2POp] = []
        came: list[tuple[int, Tensor]] = []
        for peer in self._others():
            mine = _common(self.own(depth), held[peer])
            theirs = _common(self.own(depth, peer), held[self.rank])
            away, here = (theirs, mine) if back else (mine, theirs)
            if away[0] < away[1] and self.group is not None:
                planes = store.read(away).contiguous()
                sent.append(dist.P2POp(dist.isend, planes, group=self.group, group_peer=peer))
            if here[0] < here[1]:
                room = torch.empty_like(store.read(here), memory_format=torch.contiguous_format)
                came.append((here[0], room))
                if self.group is not None:
                    sent.append(dist.P2POp(dist.irecv, room, group=self.group, group_peer=peer))
        for work in dist.batch_isend_irecv(sent) if sent else ():
            work.wait()
        return came


ALONE = Domain()
_CURRENT: ContextVar[Domain] = ContextVar("domain", default=ALONE)


def current_domain() -> Domain:
    """The processes that share the volumes of models that are built now."""
    return _CURRENT.get()


@contextmanager
def sharing(domain: Domain) -> Iterator[None]:
    """Models that are built inside the block run on volumes that these processes share."""
    token = _CURRENT.set(domain)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def _common(a: Range, b: Range) -> Range:
    """Planes of both."""
    return max(a[0], b[0]), min(a[1], b[1])


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype together, up to `BUCKET` numbers or a single one."""
    for dtype in dict.fromkeys(t.dtype for t in tensors):
        bucket: list[Tensor] = []
        for tensor in (t for t in tensors if t.dtype == dtype):
            if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
                yield bucket
                bucket = []
            bucket.append(tensor)
        yield bucket
