r"""Operations that can be cut along d: which planes they need, and what they make of them.

An operation gives planes [lo, hi) of its output from a range of planes of each input,

.. math:: y[lo{:}hi] = f\big(x_1[a_1{:}b_1], x_2[a_2{:}b_2], \dots\big), \qquad
          (a_i, b_i) = \mathrm{needs}_i(lo, hi),

so that any part of a network that is built of them can be evaluated slab by slab, halos included,
with the same numbers as in one piece. The exception is a group norm, whose statistics are those of
the whole volume: it is given them, see `volumediff.memory.slab_norm`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from volumediff.networks._edges import edge_padded
from volumediff.networks._layers import Triple
from volumediff.networks._norm_act import norm_act
from volumediff.networks._repeatable import linear_twice, mean_of_cells

__all__ = [
    "Average",
    "Concat",
    "CropPlanes",
    "EdgePad",
    "LinearUpsampling",
    "LocalNorm",
    "NearestUpsampling",
    "Operation",
    "Pad",
    "Planewise",
    "Pointwise",
    "Range",
    "Whole",
    "WithinPlanes",
    "planes",
]

Range = tuple[int, int]
"""Planes lo, ..., hi - 1."""


class Operation(ABC):
    """A function of slabs.

    `small` tensors (weights, coefficients per sample and channel) do not depend on the range.
    `linear` operations do not need the values of their inputs to pass gradients on to them.
    """

    linear = True
    small: tuple[Tensor, ...] = ()

    @abstractmethod
    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        """The planes of each input, of the given depths, that the wanted output is made of."""

    @abstractmethod
    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        """The wanted planes, from those that it needs and from `small` or stand-ins for it."""


class Planewise(Operation):
    """Output plane i needs plane i of every input."""

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        return [wanted] * len(depths)


@dataclass(eq=False, repr=False)
class Pointwise(Planewise):
    """f(x_1, ..., s_1, ...) voxel by voxel; `small` has one value per sample and channel."""

    function: Callable[..., Tensor]
    small: tuple[Tensor, ...] = ()
    linear: bool = True

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        return self.function(*slabs, *small)


class Concat(Planewise):
    """Channels of all inputs, one after the other."""

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(slabs), dim=1)


@dataclass(eq=False, repr=False)
class CropPlanes(Planewise):
    """The first voxels along h and w; along d the depth of the output says enough."""

    height: int
    width: int

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        return planes(planes(slabs[0], 0, self.height, dim=3), 0, self.width, dim=4)


@dataclass(eq=False, repr=False)
class LocalNorm(Planewise):
    """silu(s x̂ + b) with statistics of one slice or one voxel: nothing beyond the plane."""

    kind: str
    groups: int
    eps: float
    fused: bool | None
    small: tuple[Tensor, ...]
    linear = False

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        how = {"kind": self.kind, "groups": self.groups, "eps": self.eps, "fused": self.fused}
        return norm_act(slabs[0], *small, **how)


@dataclass(eq=False, repr=False)
class NearestUpsampling(Operation):
    """Nearest neighbour by whole factors: output voxel i is input voxel i // factor."""

    factor: Triple

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        lo, hi = wanted
        return [(lo // self.factor[0], (hi - 1) // self.factor[0] + 1)]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        lo, hi = wanted
        y = F.interpolate(slabs[0], scale_factor=[float(f) for f in self.factor])
        return planes(y, lo % self.factor[0], hi - lo)


@dataclass(eq=False, repr=False)
class LinearUpsampling(Operation):
    """Linear interpolation to twice the size: 3/4 of the nearest and 1/4 of the next voxel."""

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        lo, hi = wanted
        return [(max(lo // 2 - 1, 0), min((hi - 1) // 2 + 2, depths[0]))]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        lo, hi = wanted
        y = linear_twice(slabs[0])
        # The first plane that it was given; at the ends of the volume both clamp alike.
        return planes(y, lo - 2 * max(lo // 2 - 1, 0), hi - lo)


@dataclass(eq=False, repr=False)
class Average(Operation):
    """Mean over cells of `size` voxels that do not overlap; `ceil` keeps incomplete ones."""

    size: Triple
    ceil: bool

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        lo, hi = wanted
        return [(lo * self.size[0], min(hi * self.size[0], depths[0]))]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        depth, *plane = self.size
        # The last cell of an odd axis may have a single plane, which torch wants to be told.
        size = (min(depth, slabs[0].shape[2]), *plane)
        return mean_of_cells(slabs[0], size, ceil=self.ceil)


@dataclass(eq=False, repr=False)
class Pad(Operation):
    """Zeros after the last voxel of each axis of a volume of so many planes."""

    after: Triple
    depth: int

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        lo, hi = wanted
        # A slab of zeros alone still needs some plane to take its other sizes from.
        return [(min(lo, self.depth - 1), min(hi, self.depth))]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        (x,), (lo, hi) = slabs, wanted
        used = max(0, min(hi, self.depth) - lo)
        y = F.pad(x, (0, self.after[2], 0, self.after[1], 0, hi - lo - used))
        return planes(y, x.shape[2] - used, hi - lo)


@dataclass(eq=False, repr=False)
class EdgePad(Operation):
    """The outermost voxels of a volume of so many planes, repeated before and after each axis."""

    before: Triple
    after: Triple
    depth: int

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        ends = wanted[0], wanted[1] - 1
        first, last = (min(max(i - self.before[0], 0), self.depth - 1) for i in ends)
        return [(first, last + 1)]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        (x,), (lo, hi) = slabs, wanted
        before = min(max(self.before[0] - lo, 0), hi - lo)
        after = min(max(hi - self.before[0] - self.depth, 0), hi - lo)
        y = edge_padded(x, (before, *self.before[1:]), (after, *self.after[1:]))
        # of copies alone there is one too many: the plane that they are copies of
        return planes(y, 0, hi - lo)


@dataclass(eq=False, repr=False)
class WithinPlanes(Planewise):
    """A module that looks no further than a plane; `small` are its parameters and further
    arguments."""

    module: nn.Module
    small: tuple[Tensor, ...]
    linear = False

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        return _called(self.module, slabs, small)


@dataclass(eq=False, repr=False)
class Whole(Operation):
    """A module that needs its inputs whole; `small` are its parameters and further arguments."""

    module: nn.Module
    small: tuple[Tensor, ...]
    linear = False

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        return [(0, depth) for depth in depths]

    def __call__(self, wanted: Range, slabs: Sequence[Tensor], small: Sequence[Tensor]) -> Tensor:
        if getattr(self.module, "by_planes", False):
            return _called(self.module, slabs, small, planes=wanted)
        lo, hi = wanted
        return planes(_called(self.module, slabs, small), lo, hi - lo)


def _called(
    module: nn.Module, slabs: Sequence[Tensor], small: Sequence[Tensor], **asked: Range
) -> Tensor:
    """What a module makes of slabs, with these parameters and further arguments."""
    names = [name for name, _ in module.named_parameters()]
    parameters = dict(zip(names, small, strict=False))
    arguments: tuple[Any, ...] = (*slabs, *small[len(names) :])
    return torch.func.functional_call(module, parameters, arguments, asked)


def planes(x: Tensor, start: int, count: int, *, dim: int = 2) -> Tensor:
    """So many planes; all of them as they are, since even then the gradient would be copied."""
    return x if x.shape[dim] == count else x.narrow(dim, start, count)
