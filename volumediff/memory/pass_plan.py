"""What a pass keeps of a recorded graph, and in which slabs it is made: decided before it runs.

stored    volumes that are kept whole, on the device or in host memory
dropped   stored ones that the backward pass makes again, by `checkpoint`
rebuilt   stored ones that are made again from their part wherever the backward pass reads them
remade    skips that the decoder makes again in inference, by `recompute_skips`
held      the planes of every volume that each process of a domain has at hand
"""

import math

from volumediff.memory.domain import Domain
from volumediff.memory.graph import Graph, Node
from volumediff.memory.parts import Part, fine_encoder, joins, part_of, stored
from volumediff.memory.rebuilt import worth_rebuilding
from volumediff.memory.slab_convolution import Convolution
from volumediff.memory.slab_norm import NormAffine
from volumediff.memory.slabs import Range, Whole

__all__ = ["PassPlan"]


class PassPlan:
    """What is kept, made again and shared, and in which order volumes are made.

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
        self.pieces, self.domain = pieces, domain
        norms = [node for node in graph.nodes if isinstance(node.operation, NormAffine)]
        self.measured = {node.inputs[0] for node in norms}
        # One policy for all norms; those without an activation are of attention, and say nothing.
        said = [node.operation.fused for node in norms if node.operation.activated]
        self.fused: bool | None = said[0] if said else False
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

    def slabs(self, node: Node) -> list[Range]:
        """This process's planes; where it has none, it still takes part in what all do."""
        first, end = self.domain.own(node.depth)
        if first == end:
            return []
        if isinstance(node.operation, Whole):
            return [(first, end)]
        step = self._step(node) if self.slab else math.ceil((end - first) / self.pieces)
        return [(lo, min(lo + step, end)) for lo in range(first, end, step)]

    def window(self, node: Node) -> Range:
        """The planes of a volume that this process holds."""
        return self.held[node][self.domain.rank]

    def waits(self, node: Node) -> bool:
        """Whether a volume is kept in host memory; the output is not."""
        return self.offload and node is not self.graph.output

    def waits_backward(self, leaf: Node) -> bool:
        """Whether a volume's gradient is kept in host memory; those of sources are not."""
        return self.offload and leaf.operation is not None

    def wants_gradient(self, leaf: Node) -> bool:
        return leaf.operation is not None or self.graph.sources[leaf.source].requires_grad

    def _part(self, top: Node) -> Part:
        """Its part; in the decoder of the finest grid, remade skips are not at hand any more."""
        again = bool(self.remade) and top.number > max(n.number for n in self.remade)
        again = again and top.shape[2:] == next(iter(self.remade)).shape[2:]
        return part_of(top, self.stored - self.remade if again else self.stored)

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


def _both(a: Range, b: Range) -> Range:
    """The planes of both and those between; an empty range has none."""
    return b if a[0] >= a[1] else (min(a[0], b[0]), max(a[1], b[1]))
