"""Copies between a device and pinned host memory, beside the computation.

Each direction has a stream of its own. What is fetched is waited for where it is used, what is
sent is waited for where its planes are fetched again; nothing waits for the host. Of the slabs
that are fetched, and of those that are sent, two at most hold device memory: a third one waits for
the first. On the CPU the same copies are made at once, so that a plan counts what a GPU holds.
"""

import functools
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["Arrival", "Event", "Transfers"]

Stream = Any
"""A `torch.cuda.Stream`; None on the CPU."""
Event = Any
"""A `torch.cuda.Event`; None on the CPU, where everything asked for is done."""
IN_FLIGHT = 2


class _Lane:
    """A stream, or the CPU, where everything is done in the order in which it is asked for."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def event(self) -> Event:
        """When all that the lane was given until now is done."""
        return None if self.stream is None else self.stream.record_event()

    def after(self, event: Event) -> None:
        """Makes all that the lane is given from now on wait."""
        if self.stream is not None and event is not None:
            self.stream.wait_event(event)

    def on(self) -> AbstractContextManager[object]:
        """What is done inside the block is given to the lane."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


@dataclass(eq=False)
class _Fetched:
    """The buffers of one slab's inputs.

    Arguments:
        before: all that was computed before the slab is
    """

    buffers: list[Tensor] = field(default_factory=list)
    before: Event = None
    taken: bool = False


@dataclass(eq=False)
class Arrival:
    """Planes on their way to the device."""

    transfers: "Transfers"
    slab: _Fetched
    buffer: Tensor
    done: Event

    def take(self) -> Tensor:
        """The planes; the computation waits for them here."""
        here = self.transfers.here()
        if not self.slab.taken:
            self.slab.before, self.slab.taken = here.event(), True
        here.after(self.done)
        return self.buffer


class Transfers:
    """The copies of one pass over a network.

    Arguments:
        device: where it is computed
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._fetched: deque[_Fetched] = deque()
        self._sent: deque[tuple[Tensor, Event]] = deque()

    @functools.cached_property
    def _up(self) -> _Lane:
        return _Lane(_streams(self.device)[0])

    @functools.cached_property
    def _down(self) -> _Lane:
        return _Lane(_streams(self.device)[1])

    def here(self) -> _Lane:
        """Where the network is computed."""
        cuda = self.device.type == "cuda"
        return _Lane(torch.cuda.current_stream(self.device) if cuda else None)

    def begin(self) -> None:
        """The inputs of another slab are going to be fetched; the slab before the last is made."""
        if len(self._fetched) == IN_FLIGHT:
            last = self._fetched[-1]
            # Its memory belongs to the stream of the copies, which has to be told that it is free.
            self._up.after(last.before if last.taken else self.here().event())
            self._fetched.popleft()
        self._fetched.append(_Fetched())

    def fetch(self, planes: Tensor, after: Iterable[Event] = ()) -> Arrival:
        """Host memory on its way to the device.

        Arguments:
            planes: dense
            after: when they are there to be read
        """
        assert planes.is_contiguous(), "what is not dense would be copied on the host first"
        for event in after:
            self._up.after(event)
        with self._up.on():
            buffer = torch.empty(planes.shape, dtype=planes.dtype, device=self.device)
            buffer.copy_(planes, non_blocking=True)
        self._fetched[-1].buffers.append(buffer)
        return Arrival(self, self._fetched[-1], buffer, self._up.event())

    def send(self, slab: Tensor, planes: Tensor) -> Event:
        """A slab on its way to host memory; returns when it is there.

        Arguments:
            slab, planes: both dense, of one dtype
        """
        dense = slab.is_contiguous() and planes.is_contiguous() and slab.dtype == planes.dtype
        assert dense, "what is not dense would be copied on the host first"
        here = self.here()
        self._down.after(here.event())
        with self._down.on():
            planes.copy_(slab, non_blocking=True)
        done = self._down.event()
        self._sent.append((slab, done))
        if len(self._sent) > IN_FLIGHT:
            self._forget_sent(here)
        return done

    def finish(self) -> None:
        """Gives back all device memory."""
        if self._fetched:
            self._up.after(self.here().event())
        self._fetched.clear()
        while self._sent:
            self._forget_sent(self.here())

    def _forget_sent(self, here: _Lane) -> None:
        """The memory of the slab that was sent first is free for what is computed from now on."""
        here.after(self._sent[0][1])
        self._sent.popleft()


@functools.cache
def _streams(device: torch.device) -> tuple[Stream, Stream]:
    """Those of the copies to a device and from it."""
    if device.type != "cuda":
        return None, None
    return torch.cuda.Stream(device), torch.cuda.Stream(device)
