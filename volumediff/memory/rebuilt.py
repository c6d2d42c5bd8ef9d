"""Volumes that are made again, slab by slab, wherever they are read.

Two kinds are worth it in training. A convolution of a few channels, such as the first of a
network on images, is cheap. And a volume that is much larger than all others, such as an enlarged
one with the channels of the coarser grid, sets the peak of a whole step: it costs its convolution
once more for each pass that reads it, and never has to be there.
"""

import math
from collections.abc import Callable, Container, Mapping, Sequence

from torch import Tensor

from volumediff.memory.graph import Node
from volumediff.memory.parts import Part
from volumediff.memory.slab_convolution import Convolution
from volumediff.memory.slabs import Range
from volumediff.memory.store import Store

__all__ = ["Rebuilt", "worth_rebuilding"]

# Of values read, values made by a convolution that is cheap.
CHEAP = 16
# Of the second largest volume, the largest one, which is made of one as much smaller at least.
WIDE = 2


class Rebuilt(Store):
    """A volume that is not kept: what is read of it is made of the volumes before it.

    Arguments:
        part: how
        values: the volumes before it
        small: what its operations take besides, by node
    """

    def __init__(
        self,
        part: Part,
        values: Mapping[Node, Store],
        small: Mapping[Node, tuple[Tensor, ...]],
    ) -> None:
        self.part, self.values, self.small = part, values, small
        self.depth = self.filled = part.top.depth

    def ask(self, wanted: Range) -> Callable[[], Tensor]:
        ranges = self.part.ranges(wanted)
        asked = {leaf: self.values[leaf].ask(ranges[leaf]) for leaf in self.part.leaves}

        def take() -> Tensor:
            return self.part.compute(ranges, {n: a() for n, a in asked.items()}, self.small)

        return take

    def write(self, lo: int, slab: Tensor) -> None:
        raise AssertionError("what is made again is not written")

    ask_sum = add = complete = write


def worth_rebuilding(parts: Sequence[Part], grids: Container[int]) -> set[Node]:
    """Volumes that a training step had better make again than keep.

    Arguments:
        parts: how all stored volumes are made
        grids: numbers of voxels of those to be spared
    """

    def size(node: Node) -> int:
        return math.prod(node.shape)

    tops = sorted((part.top for part in parts), key=size, reverse=True)
    found = set()
    for part in parts:
        top, given = part.top, sum(map(size, part.leaves))
        if math.prod(top.shape[2:]) not in grids or not isinstance(top.operation, Convolution):
            continue
        widest = top is tops[0] and len(tops) > 1 and size(top) >= WIDE * size(tops[1])
        if given * CHEAP <= size(top) or (widest and given * WIDE <= size(top)):
            found.add(top)
    return found
