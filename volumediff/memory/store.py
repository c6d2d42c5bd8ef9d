"""Storage of a volume while slabs of it are computed: on its device, or in host memory."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from volumediff.memory import host
from volumediff.memory.slabs import Range
from volumediff.memory.transfers import Arrival, Event, Transfers

__all__ = ["DeviceStore", "HostStore", "Store"]

AXES = (1, 4, 0, 2, 3)  # of (b, c, d, h, w) in (d, b, h, w, c)
DEPTH_FIRST = (2, 0, 3, 4, 1)  # and the way back


class Store(ABC):
    """A volume that is written and read slab by slab; slabs are on the device.

    Arguments:
        depth: planes along d
        first: number of the first of them
    """

    depth: int
    first: int = 0

    @abstractmethod
    def ask(self, wanted: Range) -> Callable[[], Tensor]:
        """Begins to read planes; what is returned gives them."""

    @abstractmethod
    def write(self, lo: int, slab: Tensor) -> None:
        """Puts planes in place; they may overlap those written before, or follow them."""

    @abstractmethod
    def ask_sum(self, wanted: Range) -> Callable[[], Tensor | None]:
        """Begins to read what a slab is going to be added to; slabs come in order."""

    @abstractmethod
    def add(self, lo: int, slab: Tensor, there: Tensor | None) -> None:
        """Adds planes, which it may change, to those there are; the others count as zeros.

        Arguments:
            there: what was read for it
        """

    @abstractmethod
    def complete(self) -> None:
        """Ends a pass of additions: the planes that hold no values yet are zeros."""

    def read(self, wanted: Range) -> Tensor:
        """Planes (b, c, d, h, w)."""
        return self.ask(wanted)()

    def whole(self) -> Tensor:
        """All planes on the device."""
        return self.read((self.first, self.first + self.depth))


class DeviceStore(Store):
    """On the device; what is read are views.

    Arguments:
        tensor: all planes (b, c, d, h, w)
        filled: planes before this one hold values
    """

    def __init__(self, tensor: Tensor, filled: int | None = None) -> None:
        self.tensor, self.depth = tensor, tensor.shape[2]
        self.filled = self.depth if filled is None else filled

    @classmethod
    def like(cls, slab: Tensor, depth: int) -> "DeviceStore":
        """Room for so many planes like those of a slab."""
        b, c, _, h, w = slab.shape
        how = {"dtype": slab.dtype, "device": slab.device, "memory_format": _layout(slab)}
        return cls(torch.empty((b, c, depth, h, w), **how), 0)

    def ask(self, wanted: Range) -> Callable[[], Tensor]:
        return lambda: self._planes(*wanted)

    def write(self, lo: int, slab: Tensor) -> None:
        self._planes(lo, lo + slab.shape[2]).copy_(slab)
        self.filled = max(self.filled, lo + slab.shape[2])

    def ask_sum(self, wanted: Range) -> Callable[[], None]:
        return lambda: None

    def add(self, lo: int, slab: Tensor, there: Tensor | None) -> None:
        if lo > self.filled:
            self._planes(self.filled, lo).zero_()
            self.filled = lo
        common = min(self.filled - lo, slab.shape[2])
        if common:
            self._planes(lo, lo + common).add_(slab.narrow(2, 0, common))
        if common < slab.shape[2]:
            self.write(lo + common, slab.narrow(2, common, slab.shape[2] - common))

    def complete(self) -> None:
        if self.filled < self.depth:
            self._planes(self.filled, self.depth).zero_()
            self.filled = self.depth

    def _planes(self, lo: int, hi: int) -> Tensor:
        return self.tensor.narrow(2, lo, hi - lo)


class HostStore(Store):
    """In host memory, as (d, b, h, w, c): any slab is dense, and copied in one go.

    Arguments:
        slab: what slabs are like
        depth: planes along d
        transfers: that copy them
    """

    def __init__(self, slab: Tensor, depth: int, transfers: Transfers) -> None:
        b, c, _, h, w = slab.shape
        self.depth, self.filled, self.transfers = depth, 0, transfers
        self._room = host.empty((depth, b, h, w, c), slab.dtype, slab)
        self._layout = _layout(slab)
        # Of every plane, when it was written last.
        self._written: list[Event] = [None] * depth
        # In a pass of additions: planes before this one have been asked for, and the last slab.
        self._asked, self._last = 0, (0, None)

    def ask(self, wanted: Range) -> Callable[[], Tensor]:
        lo, hi = wanted
        arrival = self.transfers.fetch(self._room[lo:hi], set(self._written[lo:hi]))
        return lambda: self._as_slab(arrival)

    def _as_slab(self, arrival: Arrival) -> Tensor:
        return arrival.take().permute(AXES).contiguous(memory_format=self._layout)

    def write(self, lo: int, slab: Tensor) -> None:
        hi = lo + slab.shape[2]
        done = self.transfers.send(slab.permute(DEPTH_FIRST).contiguous(), self._room[lo:hi])
        self._written[lo:hi] = [done] * (hi - lo)
        self.filled = max(self.filled, hi)

    def ask_sum(self, wanted: Range) -> Callable[[], Tensor | None]:
        # What slabs before it reach as well is taken from the last of them, and not from here.
        lo, hi = max(wanted[0], self._asked), min(wanted[1], self.filled)
        self._asked = wanted[1]
        return self.ask((lo, hi)) if lo < hi else lambda: None

    def add(self, lo: int, slab: Tensor, there: Tensor | None) -> None:
        if lo > self.filled:
            self._room[self.filled : lo].zero_()
            self.filled = lo
        first, last = self._last
        common = 0 if last is None else min(first + last.shape[2] - lo, slab.shape[2])
        if common > 0:
            slab.narrow(2, 0, common).add_(last.narrow(2, lo - first, common))
        if there is not None:
            slab.narrow(2, max(common, 0), there.shape[2]).add_(there)
        self.write(lo, slab)
        self._last = lo, slab

    def complete(self) -> None:
        self._room[self.filled :].zero_()
        self.filled, self._asked, self._last = self.depth, 0, (0, None)


def _layout(slab: Tensor) -> torch.memory_format:
    """Channels last where they are, planar where that is as true."""
    last = torch.channels_last_3d
    if slab.is_contiguous(memory_format=last) and not slab.is_contiguous():
        return last
    return torch.contiguous_format
