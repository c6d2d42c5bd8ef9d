r"""A recorded pass, executed slab by slab: forward, and backward through it.

Statistics of a volume are accumulated while it is made. Backward, stored volumes are taken in
reverse. A slab of one is made again from the stored volumes before it, under autograd, and passes
its gradient on to them; gradients of the statistics, which every voxel shares, are added when
their volume's turn comes:

.. math:: \frac{\partial L}{\partial x_i} \mathrel{+}= \frac1n \frac{\partial L}{\partial \mu} +
          \frac2n (x_i - \mu) \frac{\partial L}{\partial \sigma^2}
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from volumediff.memory.domain import Domain
from volumediff.memory.graph import Graph, Node
from volumediff.memory.norm_statistics import SlabMoments, coefficients
from volumediff.memory.parts import Part, fine_encoder, joins, part_of, stored
from volumediff.memory.slabs import NormAffine, Range, Whole, scaled
from volumediff.memory.store import DeviceStore, HostStore, Store
from volumediff.memory.transfers import Transfers
from volumediff.memory.window import Window

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
        self.graph, self.slab, self.offload, self.checkpoint = graph, slab, offload, checkpoint
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
        self.schedule = [node for node in made if node in self.stored | self.measured]
        self.parts = {node: self._part(node) for node in self.schedule}
        self.last_use = {leaf: node for node in self.schedule for leaf in self.parts[node].leaves}
        self.dropped = self._dropped()
        self.held = self._held()
        self.values: dict[Node, Store] = {
            node: DeviceStore(graph.sources[node.source].detach())
            for node in graph.nodes
            if node.operation is None
        }
        self.transfers = Transfers(self.device)
        self.moments: dict[Node, SlabMoments] = {}
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
                done = self.last_use[leaf] is node
                if done and leaf.operation is not None and (not training or leaf in self.dropped):
                    self.values.pop(leaf, None)
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
        step = self.slab or math.ceil((end - first) / self.pieces)
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

    def _dropped(self) -> set[Node]:
        """Stored volumes that are made again for the backward pass.

        Those with one reader, as inside a residual block; of two in a row the larger or else the
        first, so that one convolution brings each of them back.
        """
        dropped: set[Node] = set()
        beside: set[Node] = set()  # what those are made of
        grids = sorted({math.prod(n.shape[2:]) for n in self.stored}, reverse=True)
        for voxels in grids[: self.checkpoint]:
            for node in self.schedule:
                inner = math.prod(node.shape[2:]) == voxels and node in self.stored
                single = inner and len(self.graph.consumers[node]) == 1
                leaves = self.parts[node].leaves
                if single and node not in beside and not dropped.intersection(leaves):
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
        moments = SlabMoments(node.dtype)
        for wanted in self._slabs(node):
            moments.update(self.values[node].read(wanted))
        self.domain.merge(moments, node.shape, self.device)
        self.moments[node] = moments

    def _make(self, node: Node, *, training: bool) -> None:
        """Stores a volume, accumulates its statistics, or both."""
        part, slabs = self.parts[node], self._slabs(node)
        small = {n: self._small(n) for n in part.inner}
        measured = node in self.measured and node not in self.moments
        moments = SlabMoments(node.dtype) if measured else None
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
        """What an operation takes besides slabs."""
        assert node.operation is not None, "sources are leaves"
        small = tuple(t.detach() for t in node.operation.small)
        if not isinstance(node.operation, NormAffine):
            return small
        operation, moments = node.operation, self.moments[node.inputs[0]]
        return coefficients(*moments.result(), *small, operation.groups, operation.eps)

    def _pass_on(self, node: Node) -> None:
        """Gives a volume's gradient to the stored volumes and small tensors that it is made of."""
        part, slabs = self.parts[node], self._slabs(node)
        if not self.offload and node in self.stored:
            # First of all, so that the volume can go. In host memory it may stay: one way less.
            self._share_out(node)
            self.values.pop(node, None)
        share, total = self.shares.pop(node, None), self.gradients.get(node)
        for leaf in (*part.leaves, *((node,) if share and node in self.stored else ())):
            self._bring_back(leaf)
        small = {n: tuple(self._leaf(n, t) for t in self._small(n)) for n in part.inner}
        wanting = [leaf for leaf in part.leaves if self._wants_gradient(leaf)]
        heir = self._heir(part, slabs, wanting)
        own = self.values.get(node) if share is not None else None
        summed = [leaf for leaf in wanting if leaf in self.gradients]

        def ask(wanted: Range) -> _Asked:
            ranges = part.ranges(wanted)
            return _Asked(
                wanted,
                ranges,
                {n: self.values[n].ask(ranges[n]) for n in part.leaves},
                None if total is None else total.ask(wanted),
                None if own is None else own.ask(wanted),
                {leaf: self.gradients[leaf].ask_sum(ranges[leaf]) for leaf in summed},
            )

        for asked in self._ahead(slabs, ask):
            leaves = asked.values()
            for leaf in wanting:
                leaves[leaf].requires_grad_()
            ends = [leaves[leaf] for leaf in wanting]
            ends += [t for ts in small.values() for t in ts if t.requires_grad]
            with torch.enable_grad():
                slab = part.compute(asked.ranges, leaves, small)
            grad = None if asked.gradient is None else asked.gradient()
            if share is not None:
                x = slab.detach() if asked.own is None else asked.own()
                of_statistics = scaled(x, share[1], share[0])
                grad = of_statistics if grad is None else of_statistics.add_(grad)
            if slab.requires_grad and ends:
                torch.autograd.backward(slab, grad, inputs=ends)
            del slab, grad
            for leaf, end in zip(wanting, ends, strict=False):
                passed, end.grad = end.grad, None
                if passed is None:
                    continue
                if leaf is heir:
                    assert total is not None, "an heir takes the memory of a gradient"
                    total.write(asked.wanted[0], passed)
                else:
                    self._accumulate(leaf, asked.ranges[leaf], passed, asked.sums.get(leaf))
        if heir is not None:
            assert total is not None, "an heir takes the memory of a gradient"
            self.gradients[heir] = total
        for leaf in wanting:
            if not slabs and leaf not in self.gradients:
                room = self._room(leaf, self._blank(leaf), waits=self._waits_backward(leaf))
                self.gradients[leaf] = room
            if leaf in self.gradients:
                self.gradients[leaf].complete()
        for inner, stand_ins in small.items():
            self._finish_small(inner, stand_ins)

    def _share_out(self, node: Node) -> None:
        """Adds the gradient that a volume has through its statistics, if they were taken."""
        if node not in self.shares:
            return
        offset, slope = self.shares.pop(node)
        for wanted in self._slabs(node):
            x = self.values[node].read(wanted)
            self._accumulate(node, wanted, scaled(x, slope, offset), None)

    def _leaf(self, node: Node, tensor: Tensor) -> Tensor:
        """A stand-in for a small tensor, which collects its gradient over slabs."""
        assert node.operation is not None, "sources are leaves"
        affine = isinstance(node.operation, NormAffine)
        wanted = affine or any(t.requires_grad for t in node.operation.small)
        return tensor.detach().requires_grad_(wanted and tensor.is_floating_point())

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
            alike = leaf not in self.gradients and self._window(leaf) == self._window(top)
            if alike and part.in_place_of(leaf, slabs):
                return leaf
        return None

    def _accumulate(
        self, leaf: Node, place: Range, passed: Tensor, there: Callable[[], Tensor | None] | None
    ) -> None:
        waits = self._waits_backward(leaf)
        if leaf not in self.gradients:
            if place == self._window(leaf) and not waits:
                self.gradients[leaf] = _from(place[0], DeviceStore(passed))
                return
            self.gradients[leaf] = self._room(leaf, passed, waits=waits)
        self.gradients[leaf].add(place[0], passed, None if there is None else there())

    def _waits_backward(self, leaf: Node) -> bool:
        """Whether a volume's gradient is kept in host memory; those of sources are not."""
        return self.offload and leaf.operation is not None

    def _finish_small(self, node: Node, stand_ins: tuple[Tensor, ...]) -> None:
        """Gradients of an operation's small tensors and, through them, of statistics."""
        assert node.operation is not None, "sources are leaves"
        originals = node.operation.small
        if not isinstance(node.operation, NormAffine):
            for original, stand_in in zip(originals, stand_ins, strict=True):
                if original.requires_grad and (partial := self._partial(stand_in)) is not None:
                    self._add_small(original, partial)
            return
        operation, x = node.operation, node.inputs[0]
        partial = [self._partial(t) for t in stand_ins]
        if any(t is None for t in partial):
            return
        moments = self.moments[x]
        given = [t.detach().requires_grad_() for t in (*moments.result(), *originals)]
        with torch.enable_grad():
            made = coefficients(*given, operation.groups, operation.eps)
        mean, variance, *of_small = torch.autograd.grad(made, given, partial)
        self.domain.total([mean, variance])
        for original, gradient in zip(originals, of_small, strict=True):
            if original.requires_grad:
                self._add_small(original, gradient)
        slope = 2 * variance / moments.count
        offset = mean / moments.count - slope * given[0].detach()
        slope, offset = slope.to(moments.dtype), offset.to(moments.dtype)
        before = self.shares.get(x, (0.0, 0.0))
        self.shares[x] = (before[0] + offset, before[1] + slope)

    def _partial(self, stand_in: Tensor) -> Tensor | None:
        """The gradient that this process's planes gave; zeros where it has none and others may."""
        if stand_in.grad is None and self.domain.size > 1:
            return torch.zeros_like(stand_in)
        return stand_in.grad

    def _add_small(self, original: Tensor, gradient: Tensor) -> None:
        before = self.small_gradients.get(id(original))
        gradient = gradient.to(original.dtype)
        self.small_gradients[id(original)] = gradient if before is None else before + gradient


def _from(first: int, store: Store) -> Store:
    """The store, whose first plane is that of the volume."""
    return Window(store, first) if first else store


def _both(a: Range, b: Range) -> Range:
    """The planes of both and those between; an empty range has none."""
    return b if a[0] >= a[1] else (min(a[0], b[0]), max(a[1], b[1]))
