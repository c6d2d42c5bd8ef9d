r"""A recorded pass, executed slab by slab: forward, and backward through it.

Statistics of a volume are accumulated while it is made. Backward, stored volumes are taken in
reverse. A slab of one is made again from the stored volumes before it, under autograd, and passes
its gradient on to them; gradients of the statistics, which every voxel shares, are added when
their volume's turn comes:

.. math:: \frac{\partial L}{\partial x_i} \mathrel{+}= \frac1n \frac{\partial L}{\partial \mu} +
          \frac2n (x_i - \mu) \frac{\partial L}{\partial \sigma^2}
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from volumediff.memory.domain import Domain
from volumediff.memory.graph import Graph, Node
from volumediff.memory.norm_statistics import Affine, SlabMoments
from volumediff.memory.parts import Part, fine_encoder, joins, part_of, stored
from volumediff.memory.rebuilt import Rebuilt, worth_rebuilding
from volumediff.memory.slabs import Convolution, NormAffine, Range, Whole, neutral, scaled
from volumediff.memory.store import DeviceStore, HostStore, Store
from volumediff.memory.transfers import Transfers
from volumediff.memory.window import StoreWindow

__all__ = ["Execution"]


@dataclass(eq=False)
class _Asked:
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
    """One pass over a graph, forward and perhaps backward.

    Arguments:
        graph: the recorded pass
        slab, offload, checkpoint, recompute_skips, domain: see `stream`
        pieces: slabs of a volume where no depth is given
    """

    def __init__(
        self,
        graph: Graph,
        *,
        slab: int | None,
        offload: bool,
        checkpoint: int,
        recompute_skips: bool,
        domain: Domain,
        pieces: int,
    ) -> None:
        self.graph, self.slab, self.offload = graph, slab, offload
        self.pieces = pieces
        self.domain, self.device = domain, graph.sources[0].device
        self.measured = {
            node.inputs[0] for node in graph.nodes if isinstance(node.operation, NormAffine)
        }
        self.stored = stored(graph)
        made = [node for node in graph.nodes if node.operation is not None]
        self.remade: set[Node] = set()
        if recompute_skips:
            self.remade = fine_encoder([node for node in made if node in self.stored])
            self.stored |= joins(graph, self.remade) & self.measured
        grids = sorted({math.prod(n.shape[2:]) for n in self.stored}, reverse=True)[:checkpoint]
        self.rebuilt: set[Node] = set()
        if not offload and domain.size == 1:
            parts = [part_of(node, self.stored) for node in made if node in self.stored]
            self.rebuilt = worth_rebuilding(parts, grids)
            # Their shortcuts are kept for a moment, so that no pass holds their gradient beside
            # that of the sum.
            for node in self.rebuilt:
                readers = graph.consumers[node]
                self.stored |= {n for n in readers if isinstance(n.operation, Convolution)}
        self.schedule = [node for node in made if node in self.stored | self.measured]
        self.parts = {node: self._part(node) for node in self.schedule}
        self.widest = max(part.width for part in self.parts.values())
        self.finest = max(math.prod(node.shape[2:]) for node in self.schedule)
        self.last_use = {leaf: node for node in self.schedule for leaf in self.parts[node].leaves}
        self.first_use = {n: node for node in self.schedule[::-1] for n in self.parts[node].leaves}
        self.dropped = self._dropped(grids)
        self.held = self._held()
        self.values: dict[Node, Store] = {
            node: DeviceStore(graph.sources[node.source].detach())
            for node in graph.nodes
            if node.operation is None
        }
        self.transfers = Transfers(self.device)
        self.moments: dict[Node, SlabMoments] = {}
        self.affines: dict[Node, Affine] = {}
        self.neutrals: dict[tuple[int, torch.dtype], tuple[Tensor, Tensor]] = {}
        self.gradients: dict[Node, Store] = {}
        self.small_gradients: dict[int, Tensor] = {}
        # Of every measured volume: (P, Q), its statistics' share of the gradient is P + Q x.
        self.shares: dict[Node, tuple[Tensor, Tensor]] = {}

    def forward(self, *, training: bool) -> Tensor:
        """The whole output; in training, what the backward pass needs is kept."""
        for source in self.measured & self.values.keys():
            self._measure(source)
        for node in self.schedule:
            self._make(node, training=training)
            for leaf in self.parts[node].leaves:
                if self.last_use[leaf] is not node or leaf.operation is None:
                    continue
                if not training or leaf in self.dropped:
                    self.values.pop(leaf, None)
                elif leaf in self.rebuilt:
                    part = self.parts[leaf]
                    small = {n: self._small(n) for n in part.inner}
                    self.values[leaf] = Rebuilt(part, self.values, small)
        self.transfers.finish()
        return self.values.pop(self.graph.output).whole()

    @torch.no_grad()
    def backward(self, grad: Tensor) -> None:
        """Gradients of sources and small tensors, from that of the whole output."""
        self.gradients[self.graph.output] = DeviceStore(grad)
        for node in reversed(self.schedule):
            if node in self.gradients and node is not self.graph.output:
                self._exchange(self.domain.fold, self.gradients[node], node)
            if node in self.gradients or node in self.shares:
                self._pass_on(node)
            for leaf in self.parts[node].leaves:
                if self.first_use[leaf] is node and leaf in self.stored:
                    self._part_with(leaf)
            self.gradients.pop(node, None)
            self.values.pop(node, None)
        for source in [node for node in self.shares if self._wants_gradient(node)]:
            self._share_out(source)
        self.transfers.finish()
        of_sources = [self.gradients[node].whole() for node in self._given_gradients()]
        self.domain.total([*of_sources, *self.small_gradients.values()])

    def source_gradients(self) -> list[Tensor | None]:
        """Gradients of the given volumes, None for those that want none."""
        found: list[Tensor | None] = [None] * len(self.graph.sources)
        for node in self._given_gradients():
            found[node.source] = self.gradients[node].whole()
        return found

    def _given_gradients(self) -> list[Node]:
        """Given volumes with a gradient."""
        return [n for n in self.graph.nodes if n.operation is None and n in self.gradients]

    def _part(self, top: Node) -> Part:
        """Its part; in the decoder of the finest grid, remade skips are not at hand any more."""
        again = bool(self.remade) and top.number > max(n.number for n in self.remade)
        again = again and top.shape[2:] == next(iter(self.remade)).shape[2:]
        return part_of(top, self.stored - self.remade if again else self.stored)

    def _slabs(self, node: Node) -> list[Range]:
        """This process's planes; where it has none, it still takes part in what all do."""
        first, end = self.domain.own(node.depth)
        if first == end:
            return []
        if isinstance(node.operation, Whole):
            return [(first, end)]
        step = self._step(node) if self.slab else math.ceil((end - first) / self.pieces)
        return [(lo, min(lo + step, end)) for lo in range(first, end, step)]

    def _held(self) -> dict[Node, list[Range]]:
        """Of every volume and process the planes that it holds: its own, and copies of those that
        are read beside them; of sources and output all."""
        ranks = range(self.domain.size)
        held = {node: [self.domain.own(node.depth, r) for r in ranks] for node in self.schedule}
        for node in self.graph.nodes:
            if node.operation is None or node is self.graph.output:
                held[node] = [(0, node.depth) for _ in ranks]
        for node in self.schedule:
            for rank in ranks if self.domain.size > 1 else ():
                wanted = self.domain.own(node.depth, rank)
                ranges = self.parts[node].ranges(wanted) if wanted[0] < wanted[1] else {}
                for leaf in self.parts[node].leaves if ranges else ():
                    held[leaf][rank] = _both(held[leaf][rank], ranges[leaf])
        return held

    def _window(self, node: Node) -> Range:
        """The planes of a volume that this process holds."""
        return self.held[node][self.domain.rank]

    def _step(self, node: Node) -> int:
        """Planes of its slabs: as many as are no larger than the largest slab of the network.

        Coarse grids, where planes are small, are cut into fewer slabs, each of which is a chain of
        operations. What travels to host memory stays in small pieces, which overlap better.
        """
        assert self.slab is not None, "there are slabs"
        part = self.parts.get(node)
        if part is None or self.offload or math.prod(node.shape[2:]) == self.finest:
            return self.slab
        return int(self.slab * self.widest // part.width)

    def _dropped(self, grids: list[int]) -> set[Node]:
        """Stored volumes that are made again for the backward pass.

        Those with one reader, as inside a residual block; of two in a row the larger or else the
        first, so that one convolution brings each of them back. Both of them where the reader is
        on a coarser grid: the block that ends a level waits longest.
        """
        dropped: set[Node] = set()
        # What those are made of, and what is made again wherever it is read.
        beside = self.rebuilt.union(*(self.parts[node].leaves for node in self.rebuilt))
        for voxels in grids:
            for node in self.schedule:
                inner = math.prod(node.shape[2:]) == voxels and node in self.stored
                single = inner and len(self.graph.consumers[node]) == 1
                if not single or node in beside:
                    continue
                leaves = self.parts[node].leaves
                down = math.prod(self.last_use[node].shape[2:]) < voxels
                if down or not dropped.intersection(leaves):
                    dropped.add(node)
                    beside.update(leaves)
        return dropped

    def _ahead(self, slabs: list[Range], ask: Callable[[Range], _Asked]) -> Iterator[_Asked]:
        """What is asked for every slab.

        What waits in host memory is asked for one slab ahead, so that it travels while the slab
        before it is computed.
        """
        if not self.offload or not slabs:
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

    def _room(self, node: Node, slab: Tensor, *, waits: bool) -> Store:
        """Where a volume is kept, on the device or in host memory, given what slabs are like."""
        first, end = self._window(node)
        if waits:
            return _from(first, HostStore(slab, end - first, self.transfers))
        return _from(first, DeviceStore.like(slab, end - first))

    def _blank(self, node: Node) -> Tensor:
        """A slab of a volume without planes."""
        b, c, _, h, w = node.shape
        return torch.empty((b, c, 0, h, w), dtype=node.dtype, device=self.device)

    def _measure(self, node: Node) -> None:
        """Statistics of a source."""
        moments = SlabMoments()
        for wanted in self._slabs(node):
            moments.update(self.values[node].read(wanted))
        self.domain.merge(moments, node.shape, self.device)
        self.moments[node] = moments

    def _make(self, node: Node, *, training: bool) -> None:
        """Stores a volume, accumulates its statistics, or both."""
        part, slabs = self.parts[node], self._slabs(node)
        small = {n: self._small(n) for n in part.inner}
        measured = node in self.measured and node not in self.moments
        moments = SlabMoments() if measured else None
        kept = None if training else self._donor(part, slabs)

        def ask(wanted: Range) -> _Asked:
            ranges = part.ranges(wanted)
            return _Asked(wanted, ranges, {n: self.values[n].ask(ranges[n]) for n in part.leaves})

        for asked in self._ahead(slabs, ask):
            slab = part.compute(asked.ranges, asked.values(), small)
            if moments is not None:
                moments.update(slab)
            if node not in self.stored:
                continue
            if asked.wanted == self._window(node) and not self._waits(node):
                kept = _from(asked.wanted[0], DeviceStore(slab))
                break
            if kept is None:
                kept = self._room(node, slab, waits=self._waits(node))
            kept.write(asked.wanted[0], slab)
            del slab
        if node in self.stored:
            kept = kept or self._room(node, self._blank(node), waits=self._waits(node))
            self._exchange(self.domain.fill, kept, node)
            self.values[node] = kept
        if moments is not None:
            self.domain.merge(moments, node.shape, self.device)
            self.moments[node] = moments

    def _exchange(
        self, how: Callable[[Store, list[Range], int], None], store: Store, node: Node
    ) -> None:
        """Sends planes to the other processes, and takes theirs."""
        if self.domain.size > 1:
            self.transfers.begin()
            how(store, self.held[node], node.depth)

    def _waits(self, node: Node) -> bool:
        """Whether a volume is kept in host memory; the output is not."""
        return self.offload and node is not self.graph.output

    def _donor(self, part: Part, slabs: list[Range]) -> Store | None:
        """The memory of a volume that is read here for the last time, and plane by plane."""
        top = part.top
        if top not in self.stored or not self._waits(top) == self.offload:
            return None
        for leaf in part.leaves:
            last = leaf.operation is not None and self.last_use[leaf] is top
            alike = last and len(slabs) > 1 and self._window(leaf) == self._window(top)
            if alike and part.in_place_of(leaf, slabs):
                return self.values[leaf]
        return None

    def _small(self, node: Node) -> tuple[Tensor, ...]:
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
            self.affines[node] = Affine.of(moments, *small, groups=how.groups, eps=how.eps)
        affine = self.affines[node]
        return (affine.a, affine.c, *self._neutral(affine.a))

    def _neutral(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """See `neutral`; one is enough for all volumes with as many channels."""
        key = like.shape[1], like.dtype
        if key not in self.neutrals:
            self.neutrals[key] = neutral(like)
        return self.neutrals[key]

    def _pass_on(self, node: Node) -> None:
        """Gives a volume's gradient to the stored volumes and small tensors that it is made of."""
        part, slabs = self.parts[node], self._slabs(node)
        if node in self.stored:
            self._part_with(node)
        share, total = self.shares.pop(node, None), self.gradients.get(node)
        # The slab's own value is asked for where its statistics have a gradient.
        unread = part.unread if share is None or node in self.stored else set()
        read = [leaf for leaf in part.leaves if leaf not in unread]
        for leaf in (*read, *((node,) if share and node in self.stored else ())):
            self._bring_back(leaf)
        small = {n: self._stand_ins(n) for n in part.inner}
        of_small = {n: _Totals(n) for n in part.inner}
        wanting = [leaf for leaf in part.leaves if self._wants_gradient(leaf)]
        heir = self._heir(part, slabs, wanting)
        # last: what others are passed may be a view of the memory that the heir writes into
        wanting.sort(key=lambda leaf: leaf is heir)
        own = self.values.get(node) if share is not None else None
        summed = [leaf for leaf in wanting if leaf in self.gradients]

        def ask(wanted: Range) -> _Asked:
            ranges = part.ranges(wanted)
            return _Asked(
                wanted,
                ranges,
                {n: self.values[n].ask(ranges[n]) for n in read},
                None if total is None else total.ask(wanted),
                None if own is None else own.ask(wanted),
                {leaf: self.gradients[leaf].ask_sum(ranges[leaf]) for leaf in summed},
            )

        collecting = [(n, i) for n in small for i, t in enumerate(small[n]) if t.requires_grad]
        flat = None if share is None else (share[1], share[0], *self._neutral(share[0]))
        for asked in self._ahead(slabs, ask):
            leaves = asked.values() | {n: self._unread(n, asked.ranges[n]) for n in unread}
            ends = [leaves[leaf].requires_grad_() for leaf in wanting]
            ends += [small[n][i] for n, i in collecting]
            with torch.enable_grad():
                slab = part.compute(asked.ranges, leaves, small)
            grad = None if asked.gradient is None else asked.gradient()
            if flat is not None:
                x = slab.detach() if asked.own is None else asked.own()
                of_statistics = scaled(x, *flat)
                grad = of_statistics if grad is None else of_statistics.add_(grad)
            assert grad is not None, "a volume without a gradient is not asked for one"
            passed: list[Tensor | None] = [None] * len(ends)
            if slab.requires_grad and ends:
                passed = list(torch.autograd.grad(slab, ends, grad, allow_unused=True))
            del slab, ends
            # Gradients that are one tensor, as those of a sum are, may not be kept or changed.
            uses = Counter(_memory(t) for t in (grad, *passed) if t is not None)
            for place, leaf in enumerate(wanting):
                found, passed[place] = passed[place], None
                if found is None:
                    continue
                if leaf is heir:
                    assert total is not None, "an heir takes the memory of a gradient"
                    if found is not grad or flat is not None:
                        total.write(asked.wanted[0], found)
                    continue
                alone = uses[_memory(found)] == 1
                there = asked.sums.get(leaf)
                self._accumulate(leaf, asked.ranges[leaf], found, there=there, alone=alone)
            for (n, i), found in zip(collecting, passed[len(wanting) :], strict=True):
                of_small[n].add(i, found)
            del grad, passed
            found = None  # the memory of the last gradient is free
        if heir is not None:
            assert total is not None, "an heir takes the memory of a gradient"
            self.gradients[heir] = total
        for leaf in wanting:
            if not slabs and leaf not in self.gradients:
                room = self._room(leaf, self._blank(leaf), waits=self._waits_backward(leaf))
                self.gradients[leaf] = room
            if leaf in self.gradients:
                self.gradients[leaf].complete()
        for inner, totals in of_small.items():
            self._finish_small(inner, totals)

    def _unread(self, node: Node, planes: Range) -> Tensor:
        """In place of planes whose values do not matter."""
        b, c, _, h, w = node.shape
        like = self.neutrals.setdefault(
            (0, node.dtype), (torch.zeros((), dtype=node.dtype, device=self.device),) * 2
        )
        return like[0].expand(b, c, planes[1] - planes[0], h, w)

    def _part_with(self, node: Node) -> None:
        """Gives up a stored volume that nothing reads any more, when its statistics' share of the
        gradient is added. In host memory it may stay until its own turn: one way less."""
        if not self.offload:
            self._share_out(node)
            self.values.pop(node, None)

    def _share_out(self, node: Node) -> None:
        """Adds the gradient that a volume has through its statistics, if they were taken."""
        if node not in self.shares:
            return
        offset, slope = self.shares.pop(node)
        flat = (slope, offset, *self._neutral(slope))
        for wanted in self._slabs(node):
            x = self.values[node].read(wanted)
            self._accumulate(node, wanted, scaled(x, *flat), there=None, alone=True)

    def _stand_ins(self, node: Node) -> tuple[Tensor, ...]:
        """`_small`, of which autograd gives the gradients slab by slab."""
        small = self._small(node)
        assert node.operation is not None, "sources are leaves"
        if isinstance(node.operation, NormAffine):
            a, c, *rest = small
            return (a.detach().requires_grad_(), c.detach().requires_grad_(), *rest)
        if not any(t.requires_grad for t in node.operation.small):
            return small
        return tuple(t.detach().requires_grad_() if t.is_floating_point() else t for t in small)

    def _wants_gradient(self, leaf: Node) -> bool:
        return leaf.operation is not None or self.graph.sources[leaf.source].requires_grad

    def _bring_back(self, node: Node) -> None:
        """Makes a dropped volume again, and before it those that it is made of."""
        if node in self.values:
            return
        for leaf in self.parts[node].leaves:
            self._bring_back(leaf)
        self._make(node, training=True)

    def _heir(self, part: Part, slabs: list[Range], wanting: list[Node]) -> Node | None:
        """A leaf without gradient yet that takes over the memory of the top's."""
        top = part.top
        if top is self.graph.output or top not in self.gradients:
            return None
        for leaf in wanting:
            if self._waits_backward(leaf) is not self.offload:
                continue
            alike = leaf not in self.gradients and self._window(leaf) == self._window(top)
            if alike and part.in_place_of(leaf, slabs):
                return leaf
        return None

    def _accumulate(
        self,
        leaf: Node,
        place: Range,
        passed: Tensor,
        *,
        there: Callable[[], Tensor | None] | None,
        alone: bool,
    ) -> None:
        """Adds to the gradient of a leaf.

        Arguments:
            place: planes of the leaf
            there: what the gradient holds, where it was asked for
            alone: nothing else refers to the planes, which may be kept and changed
        """
        waits = self._waits_backward(leaf)
        first = leaf not in self.gradients and place == self._window(leaf)
        if not alone and (waits or first):
            passed = passed.clone()
        if leaf not in self.gradients:
            if place == self._window(leaf) and not waits:
                self.gradients[leaf] = _from(place[0], DeviceStore(passed))
                return
            self.gradients[leaf] = self._room(leaf, passed, waits=waits)
        self.gradients[leaf].add(place[0], passed, None if there is None else there())

    def _waits_backward(self, leaf: Node) -> bool:
        """Whether a volume's gradient is kept in host memory; those of sources are not."""
        return self.offload and leaf.operation is not None

    def _finish_small(self, node: Node, totals: "_Totals") -> None:
        """Gradients of an operation's small tensors and, through them, of statistics."""
        operation = node.operation
        assert operation is not None, "sources are leaves"
        # Where this process has no planes of it, others may.
        found = totals.complete() if self.domain.size > 1 else totals.found
        if not isinstance(operation, NormAffine):
            for original, total in zip(operation.small, found, strict=True):
                if original.requires_grad and total is not None:
                    self._add_small(original, total)
            return
        of_a, of_c = found
        if of_a is None or of_c is None:
            return
        affine, x = self.affines[node], node.inputs[0]
        scale, shift = operation.small
        if scale.requires_grad:
            self._add_small(scale, affine.gradient_of_scale(of_a, of_c))
        if shift.requires_grad:
            self._add_small(shift, of_c)
        share = affine.share(of_a, of_c, self.moments[x].count)
        self.domain.total(share)
        if x in self.shares:
            share = share[0] + self.shares[x][0], share[1] + self.shares[x][1]
        self.shares[x] = share

    def _add_small(self, original: Tensor, gradient: Tensor) -> None:
        before = self.small_gradients.get(id(original))
        gradient = gradient.to(original.dtype)
        self.small_gradients[id(original)] = gradient if before is None else before + gradient


class _Totals:
    """Gradients of an operation's small tensors, summed over slabs in float32 or wider."""

    def __init__(self, node: Node) -> None:
        assert node.operation is not None, "sources are leaves"
        self._small = node.operation.small
        self.found: list[Tensor | None] = [None] * len(self._small)

    def add(self, place: int, gradient: Tensor | None) -> None:
        """Adds what one slab gives."""
        if gradient is None:
            return
        total = self.found[place]
        if total is None:
            self.found[place] = gradient.to(_wide(gradient))
        else:
            total.add_(gradient)

    def complete(self) -> list[Tensor | None]:
        """Zeros where no slab gave anything to what takes a gradient."""
        return [
            torch.zeros_like(t, dtype=_wide(t)) if g is None and t.is_floating_point() else g
            for t, g in zip(self._small, self.found, strict=True)
        ]


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _memory(tensor: Tensor) -> int:
    """Equal for tensors that share memory."""
    return tensor.untyped_storage()._cdata


def _from(first: int, store: Store) -> Store:
    """The store, whose first plane is that of the volume."""
    return StoreWindow(store, first) if first else store


def _both(a: Range, b: Range) -> Range:
    """The planes of both and those between; an empty range has none."""
    return b if a[0] >= a[1] else (min(a[0], b[0]), max(a[1], b[1]))
