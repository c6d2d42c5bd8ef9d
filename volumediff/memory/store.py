"""Storage of a volume while slabs of it are computed: on its device, or in host memory."""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from volumediff.memory import host
from volumediff.memory.slabs import Range

__all__ = ["Store"]


@dataclass(eq=False, repr=False)
class Store:
    """A volume that is written and read slab by slab; slabs are on the device.

    Arguments:
        tensor: all planes
        device: of the slabs
        filled: planes before this one hold values
        first: the plane of the volume that is the first one here; all numbers are of the volume's
    """

    tensor: Tensor
    device: torch.device
    filled: int
    first: int = 0

    @classmethod
    def of(cls, tensor: Tensor, first: int = 0) -> "Store":
        """A volume that is there already, or its planes from one on."""
        return cls(tensor, tensor.device, first + tensor.shape[2], first)

    @classmethod
    def like(cls, slab: Tensor, planes: Range, *, offload: bool) -> "Store":
        """Room for planes like those of a slab.

        Arguments:
            offload: in host memory
        """
        (b, c, _, h, w), (first, end) = slab.shape, planes
        depth = end - first
        if offload:
            # Planes are contiguous when channels are last, so that a slab is copied in one go.
            room = host.empty((b, depth, h, w, c), slab.dtype, slab)
            return cls(room.permute(0, 4, 1, 2, 3), slab.device, first, first)
        last = torch.channels_last_3d
        planar = slab.is_contiguous(memory_format=last) and not slab.is_contiguous()
        layout = last if planar else torch.contiguous_format
        shape = (b, c, depth, h, w)
        room = torch.empty(shape, dtype=slab.dtype, device=slab.device, memory_format=layout)
        return cls(room, slab.device, first, first)

    @property
    def end(self) -> int:
        """The plane after the last one."""
        return self.first + self.tensor.shape[2]

    def _planes(self, lo: int, hi: int) -> Tensor:
        return self.tensor.narrow(2, lo - self.first, hi - lo)

    def read(self, wanted: Range) -> Tensor:
        """Planes, as a view where they are on the device already."""
        lo, hi = wanted
        planes = self._planes(lo, hi)
        if not self._travels:
            # Also where host and device are one, what waits is copied: so a plan counts the slab.
            return planes.clone() if host.is_host(planes) else planes
        # Copies have a stream of their own and keep their order there: a read follows the writes.
        copies, here = _copies(self.device), torch.cuda.current_stream(self.device)
        with torch.cuda.stream(copies):
            slab = planes.to(self.device, non_blocking=True)
        here.wait_stream(copies)
        slab.record_stream(here)
        return slab

    def write(self, lo: int, slab: Tensor) -> None:
        """Puts planes in place; they may overlap those written before, or follow them."""
        planes = self._planes(lo, lo + slab.shape[2])
        self.filled = max(self.filled, lo + slab.shape[2])
        if not self._travels:
            planes.copy_(slab)
            return
        copies = _copies(self.device)
        copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(copies):
            planes.copy_(slab, non_blocking=True)
        slab.record_stream(copies)

    @property
    def _travels(self) -> bool:
        return self.device.type == "cuda" and self.tensor.device.type == "cpu"

    def add(self, lo: int, slab: Tensor) -> None:
        """Adds planes to those there are; planes that hold no values yet count as zeros."""
        if lo > self.filled:
            self._planes(self.filled, lo).zero_()
            self.filled = lo
        common = min(self.filled - lo, slab.shape[2])
        if common:
            there, more = (lo, lo + common), slab.narrow(2, 0, common)
            if host.is_host(self.tensor):
                self.write(lo, self.read(there).add_(more))
            else:
                self.read(there).add_(more)
        if common < slab.shape[2]:
            self.write(lo + common, slab.narrow(2, common, slab.shape[2] - common))

    def complete(self) -> None:
        """Makes the planes that hold no values yet zeros."""
        self._planes(self.filled, self.end).zero_()
        self.filled = self.end

    def whole(self) -> Tensor:
        """All planes on the device."""
        return self.read((self.first, self.end))


@functools.cache
def _copies(device: torch.device) -> "torch.cuda.Stream":
    """The stream of the copies between a device and host memory."""
    return torch.cuda.Stream(device)
