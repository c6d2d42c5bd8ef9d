"""A recorded pass, executed slab by slab; statistics are accumulated while a volume is made."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from volumediff.memory.graph import Node
from volumediff.memory.norm_statistics import Affine, SlabMoments
from volumediff.memory.parts import Part
from volumediff.memory.pass_plan import PassPlan
from volumediff.memory.rebuilt import Rebuilt
from volumediff.memory.slab_convolution import Convolution
from volumediff.memory.slab_norm import NormAffine, neutral
from volumediff.memory.slabs import Range
from volumediff.memory.store import DeviceStore, HostStore, Store
from volumediff.memory.transfers import Transfers
from volumediff.memory.window import starting_at

__all__ = ["Asked", "Execution"]


@dataclass(eq=False)
class Asked:
    """What a slab is computed from, perhaps still on its way.

    Arguments:
        wanted: planes of the slab
        ranges: planes that each node must give
        leaves: the stored volumes that it is made of
        gradient: of the slab, backward
        own: what the slab holds, where its statistics have a gradient
        sums: what the gradients of leaves are added to
    """

    wanted: Range
    ranges: dict[Node, Range]
    leaves: dict[Node, Callable[[], Tensor]]
    gradient: Callable[[], Tensor] | None = None
    own: Callable[[], Tensor] | None = None
    sums: dict[Node, Callable[[], Tensor | None]] = field(default_factory=dict)

    def values(self) -> dict[Node, Tensor]:
        """The leaves' planes; they are asked for once."""
        found = {node: take().detach() for node, take in self.leaves.items()}
        self.leaves.clear()
        return found


class Execution:
    """One pass forward, with what it keeps.

    Arguments:
        plan: what is kept, and in which slabs
        training: whether what the backward pass needs is kept
    """

    def __init__(self, plan: PassPlan, *, training: bool) -> None:
        self.plan, self.training = plan, training
        sources = plan.graph.sources
        self.device = sources[0].device
        self.values: dict[Node, Store] = {
            node: DeviceStore(sources[node.source].detach())
            for node in plan.graph.nodes
            if node.operation is None
        }
        self.transfers = Transfers(self.device)
        self.moments: dict[Node, SlabMoments] = {}
        self.affines: dict[Node, Affine] = {}
        self.neutrals: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}

    def forward(self) -> Tensor:
        """The whole output."""
        for source in self.plan.measured & self.values.keys():
            self._measure(source)
        for node in self.plan.schedule:
            self.make(node)
            for leaf in self.plan.parts[node].leaves:
                if self.plan.last_use[leaf] is not node or leaf.operation is None:
                    continue
                if not self.training or leaf in self.plan.dropped:
                    self.values.pop(leaf, None)
                elif leaf in self.plan.rebuilt:
                    part = self.plan.parts[leaf]
                    small = {n: self.small(n) for n in part.inner}
                    self.values[leaf] = Rebuilt(part, self.values, small)
        self.transfers.finish()
        return self.values.pop(self.plan.graph.output).whole()

    def make(self, node: Node) -> None:
        """Stores a volume, accumulates its statistics, or both."""
        part, slabs = self.plan.parts[node], self.plan.slabs(node)
        small = {n: self.small(n) for n in part.inner}
        measured = node in self.plan.measured and node not in self.moments
        moments = SlabMoments(fused=self.plan.fused) if measured else None
        kept = None if self.training else self._donor(part, slabs)

        def ask(wanted: Range) -> Asked:
            ranges = part.ranges(wanted)
            return Asked(wanted, ranges, {n: self.values[n].ask(ranges[n]) for n in part.leaves})

        for asked in self.ahead(slabs, ask):
            slab = part.compute(asked.ranges, asked.values(), small)
            if moments is not None:
                moments.update(slab)
            if node not in self.plan.stored:
                continue
            if asked.wanted == self.plan.window(node) and not self.plan.waits(node):
                kept = starting_at(asked.wanted[0], DeviceStore(slab))
                break
            if kept is None:
                kept = self.room(node, slab, waits=self.plan.waits(node))
            kept.write(asked.wanted[0], slab)
            del slab
        if node in self.plan.stored:
            kept = kept or self.room(node, self.blank(node), waits=self.plan.waits(node))
            self.exchange(self.plan.domain.fill, kept, node)
            self.values[node] = kept
        if moments is not None:
            self.plan.domain.merge(moments, node.shape, self.device)
            self.moments[node] = moments

    def _measure(self, node: Node) -> None:
        """Statistics of a source."""
        moments = SlabMoments(fused=self.plan.fused)
        for wanted in self.plan.slabs(node):
            moments.update(self.values[node].read(wanted))
        self.plan.domain.merge(moments, node.shape, self.device)
        self.moments[node] = moments

    def _donor(self, part: Part, slabs: list[Range]) -> Store | None:
        """The memory of a volume that is read here for the last time, and plane by plane."""
        top = part.top
        if top not in self.plan.stored or not self.plan.waits(top) == self.plan.offload:
            return None
        for leaf in part.leaves:
            last = leaf.operation is not None and self.plan.last_use[leaf] is top
            alike = last and len(slabs) > 1 and self.plan.window(leaf) == self.plan.window(top)
            if alike and part.in_place_of(leaf, slabs):
                return self.values[leaf]
        return None

    def ahead(self, slabs: list[Range], ask: Callable[[Range], Asked]) -> Iterator[Asked]:
        """What is asked for every slab.

        What waits in host memory is asked for one slab ahead, so that it travels while the slab
        before it is computed.
        """
        if not self.plan.offload or not slabs:
            yield from map(ask, slabs)
            return
        self.transfers.begin()
        ahead = ask(slabs[0])
        for wanted in slabs[1:]:
            self.transfers.begin()
            now, ahead = ahead, ask(wanted)
            yield now
            del now
        yield ahead

    def room(self, node: Node, slab: Tensor, *, waits: bool) -> Store:
        """Where a volume is kept, on the device or in host memory, given what slabs are like."""
        first, end = self.plan.window(node)
        if waits:
            return starting_at(first, HostStore(slab, end - first, self.transfers))
        return starting_at(first, DeviceStore.like(slab, end - first))

    def blank(self, node: Node) -> Tensor:
        """A slab of a volume without planes."""
        b, c, _, h, w = node.shape
        return torch.empty((b, c, 0, h, w), dtype=node.dtype, device=self.device)

    def exchange(
        self, how: Callable[[Store, list[Range], int], None], store: Store, node: Node
    ) -> None:
        """Sends planes to the other processes, and takes theirs."""
        if self.plan.domain.size > 1:
            self.transfers.begin()
            how(store, self.plan.held[node], node.depth)

    def small(self, node: Node) -> tuple[Tensor, ...]:
        """What an operation takes besides slabs, made ready once for all of them."""
        operation = node.operation
        assert operation is not None, "sources are leaves"
        small = tuple(t.detach() for t in operation.small)
        if isinstance(operation, Convolution):
            return tuple(t.to(node.dtype) for t in small)
        if not isinstance(operation, NormAffine):
            return small
        if node not in self.affines:
            moments, how = self.moments[node.inputs[0]].result(), operation
            fused = self.moments[node.inputs[0]].fused
            self.affines[node] = Affine.of(
                moments, *small, groups=how.groups, eps=how.eps, fused=fused
            )
        affine = self.affines[node]
        return (affine.a, affine.c, *self.neutral(affine.a))

    def neutral(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """See `neutral`; one is enough for all volumes with as many channels."""
        key = like.shape[1], like.dtype
        if key not in self.neutrals:
            self.neutrals[key] = neutral(like)
        return self.neutrals[key]
