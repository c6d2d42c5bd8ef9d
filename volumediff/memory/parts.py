"""Which volumes of a recorded pass are kept whole, and how slabs of them are made of each other.

stored    what took a convolution to make and is read by a normalization or a convolution
lazy      everything between: made slab by slab, with halos, whenever a stored volume is
"""

import math
from collections import defaultdict
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from volumediff.memory.graph import Graph, Node
from volumediff.memory.slab_convolution import Convolution, TransposedConvolution
from volumediff.memory.slabs import CropPlanes, Pointwise, Range, Whole, WithinPlanes

__all__ = ["Part", "fine_encoder", "joins", "part_of", "stored"]


@dataclass(eq=False, repr=False)
class Part:
    """How slabs of a volume are made: the operations since the stored volumes before it.

    Arguments:
        top: the volume
        inner: the lazy nodes and, last, the top, in the order of computation
        leaves: stored volumes and sources that they read
    """

    top: Node
    inner: list[Node]
    leaves: list[Node]

    @cached_property
    def width(self) -> float:
        """Values of the largest volume at hand per plane of the top."""
        return max(math.prod(node.shape) for node in (*self.inner, *self.leaves)) / self.top.depth

    def ranges(self, wanted: Range) -> dict[Node, Range]:
        """The planes that every node must give for the wanted ones of the top."""
        found = {self.top: wanted}
        for node in reversed(self.inner):
            assert node.operation is not None, "sources are leaves"
            depths = [given.depth for given in node.inputs]
            needs = node.operation.needs(found[node], depths)
            for given, (lo, hi) in zip(node.inputs, needs, strict=True):
                first, last = found.get(given, (lo, hi))
                found[given] = (min(first, lo), max(last, hi))
        return found

    def compute(
        self,
        ranges: dict[Node, Range],
        values: dict[Node, Tensor],
        small: dict[Node, tuple[Tensor, ...]],
    ) -> Tensor:
        """The top's slab; `values` holds the leaves' and is used up."""
        uses: dict[Node, int] = defaultdict(int)
        for node in self.inner:
            for given in node.inputs:
                uses[given] += 1
        for node in self.inner:
            assert node.operation is not None, "sources are leaves"
            depths = [given.depth for given in node.inputs]
            slabs = []
            for given, (lo, hi) in zip(
                node.inputs, node.operation.needs(ranges[node], depths), strict=True
            ):
                first, last = ranges[given]
                value = values[given]
                if (lo, hi) != (first, last):
                    value = value.narrow(2, lo - first, hi - lo)
                slabs.append(value)
                uses[given] -= 1
                if not uses[given]:
                    del values[given]
            del value
            values[node] = node.operation(ranges[node], slabs, small.get(node, ()))
            del slabs
        return values.pop(self.top)

    @cached_property
    def unread(self) -> set[Node]:
        """Leaves whose values do not matter to the gradients of anything."""
        read: set[Node] = set()
        for node in reversed(self.inner):
            operation = node.operation
            assert operation is not None, "sources are leaves"
            if node in read or not operation.linear or isinstance(operation, Convolution):
                read.update(node.inputs)
        return set(self.leaves) - read

    def in_place_of(self, leaf: Node, slabs: list[Range]) -> bool:
        """Whether the top may take the leaf's memory: alike, and read plane by plane."""
        alike = leaf.shape == self.top.shape and leaf.dtype == self.top.dtype
        return alike and all(self.ranges(wanted)[leaf] == wanted for wanted in slabs)


def part_of(top: Node, stored: Set[Node]) -> Part:
    """How slabs of the top are made when these volumes are at hand."""
    inner, leaves, stack = {top}, set(), [top]
    while stack:
        for given in stack.pop().inputs:
            if given in stored or given.operation is None:
                leaves.add(given)
            elif given not in inner:
                inner.add(given)
                stack.append(given)

    def order(node: Node) -> int:
        return node.number

    return Part(top, sorted(inner, key=order), sorted(leaves, key=order))


def stored(graph: Graph) -> set[Node]:
    """Volumes to keep whole: those that took a convolution to make and that more than the sum of a
    residual block reads."""
    found: set[Node] = set()
    costly: set[Node] = set()
    for node in graph.nodes:
        if node.operation is None:
            continue
        made = isinstance(node.operation, Convolution | TransposedConvolution)
        if isinstance(node.operation, Whole | WithinPlanes) or node is graph.output:
            found.add(node)
        elif made or any(given in costly for given in node.inputs):
            readers = graph.consumers[node]
            if len(readers) == 1 and _merely_combines(readers[0]):
                costly.add(node)
            else:
                found.add(node)
    return found


def fine_encoder(stored: list[Node]) -> set[Node]:
    """Volumes on the finest grid that are stored before a coarser one is."""
    finest = max(math.prod(node.shape[2:]) for node in stored)
    sizes = [math.prod(node.shape[2:]) for node in stored]
    turn = next((i for i, size in enumerate(sizes) if size < finest), 0)
    fine = {node for node in stored[:turn] if sizes[0] == finest}
    # What needs whole volumes cannot be made slab by slab.
    return set() if any(isinstance(node.operation, Whole) for node in fine) else fine


def joins(graph: Graph, skips: set[Node]) -> set[Node]:
    """Sums with these skips: kept, in place of the other summand, they need the skip only once."""
    found: set[Node] = set()
    for node in graph.nodes:
        later = node not in skips and isinstance(node.operation, Pointwise)
        if later and any(given in skips or given in found for given in node.inputs):
            found.add(node)
    return found


def _merely_combines(node: Node) -> bool:
    return isinstance(node.operation, Pointwise | CropPlanes) and node.operation.linear
