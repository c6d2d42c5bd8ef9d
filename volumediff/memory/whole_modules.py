"""Modules that look at whole volumes or whole planes, and are called as they are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from volumediff.memory.slabs import Operation, Range

__all__ = ["Whole", "WithinPlanes"]


@dataclass(eq=False, repr=False)
class WithinPlanes(Operation):
    """A module that looks no further than a plane; `small` are its parameters and further
    arguments."""

    module: nn.Module
    small: tuple[Tensor, ...]
    linear = False

    def needs(self, wanted: Range, depths: Sequence[int]) -> list[Range]:
        return [wanted] * len(depths)

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
        y = _called(self.module, slabs, small)
        # All planes are passed on as they are: even then the gradient of a view would be copied.
        return y if hi - lo == y.shape[2] else y.narrow(2, lo, hi - lo)


def _called(
    module: nn.Module, slabs: Sequence[Tensor], small: Sequence[Tensor], **planes: Range
) -> Tensor:
    """What a module makes of slabs, with these parameters and further arguments."""
    names = [name for name, _ in module.named_parameters()]
    parameters = dict(zip(names, small, strict=False))
    return torch.func.functional_call(module, parameters, (*slabs, *small[len(names) :]), planes)
