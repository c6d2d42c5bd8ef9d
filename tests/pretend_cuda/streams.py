"""Streams and events that keep vector clocks, and what follows from the clocks: races, overlap.

The host and every stream count what they do. A clock says, of each of them, up to where its work
is known to be done. Work of a stream knows what the host knew when it was launched; whoever waits
for an event knows what its stream knew when it was recorded. Two accesses of the same bytes, one
of them a write, race if the later does not know the earlier (Lamport 1978; Fidge 1988).

What torch promises about streams is in its note "CUDA semantics",
https://docs.pytorch.org/docs/stable/notes/cuda.html: work of one stream is done in order, memory
that is freed goes to the next tensor of the stream that it was allocated on, and a tensor that
another stream uses must be kept, or recorded there (`Tensor.record_stream`).
"""

import collections
import itertools
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor

__all__ = ["HOST", "Event", "Order", "Stream", "place"]

HOST = 0
"""The number of the host among those that work."""
NUMBERS = itertools.count(1)
"""Of streams and events."""
Clock = dict[int, int]


@dataclass(frozen=True)
class Access:
    """Bytes `start` to `stop` of a storage, in action number `count` of a worker."""

    write: bool
    worker: int
    count: int
    start: int
    stop: int

    def __str__(self) -> str:
        return f"{named(self.worker)} {'writes' if self.write else 'reads'}"


@dataclass
class History:
    """What was done with a storage, without what later accesses cover."""

    accesses: list[Access] = field(default_factory=list)
    recorded: set[int] = field(default_factory=set)


class Order:
    """The order of all work on a device.

    Attributes:
        races: one line each
        waits: what made the host wait for the device, and how often
        pinned: host memory that copies may use while the host goes on
        streams: those that have done anything
        active: that of the device which is there
    """

    active: ClassVar["Order | None"] = None

    def __init__(self) -> None:
        self.races: list[str] = []
        self.waits: collections.Counter[str] = collections.Counter()
        self.pinned: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.host: Clock = {HOST: 1}
        self._work: list[tuple[str, int, Any]] = []
        self._histories: weakref.WeakKeyDictionary[torch.UntypedStorage, History] = (
            weakref.WeakKeyDictionary()
        )
        self._thread = threading.local()
        self.streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        self.default = Stream()

    @property
    def current(self) -> "Stream":
        """The stream that work goes to."""
        return getattr(self._thread, "stream", self.default)

    @contextmanager
    def on(self, stream: "Stream | None") -> Iterator[None]:
        """Work inside goes to this stream."""
        before = self.current
        self._thread.stream = stream or before
        try:
            yield
        finally:
            self._thread.stream = before

    def launch(self, size: int, *, copies: bool = False) -> None:
        """The next piece of work of the current stream, on so many bytes.

        Arguments:
            copies: a transfer, no computation
        """
        stream = self.current
        join(stream.clock, self.host)
        stream.clock[stream.number] += 1
        self._work.append(("copy" if copies else "compute", stream.number, size))

    def host_works(self, size: int) -> None:
        """The host itself handles so many bytes."""
        self.host[HOST] += 1
        self._work.append(("copy", HOST, size))

    def host_waits(self, known: Clock, *, of: int) -> None:
        """The host waits for an event or for all work of a stream, given by its number."""
        join(self.host, known)
        self._work.append(("wait", HOST, of))

    def record(self, event: "Event", stream: "Stream") -> None:
        """The event happens when the stream has done what it has been given."""
        join(stream.clock, self.host)
        event.clock = dict(stream.clock)
        self._work.append(("record", stream.number, event.number))

    def wait(self, stream: "Stream", event: "Event") -> None:
        """The stream goes on when the event has happened."""
        join(stream.clock, event.clock)
        self._work.append(("wait", stream.number, event.number))

    def touch(self, tensor: Tensor, *, write: bool, by_host: bool = False) -> None:
        """An access by the work that was launched last, or by the host."""
        worker = HOST if by_host else self.current.number
        clock = self.host if by_host else self.current.clock
        now = Access(write, worker, clock[worker], *span(tensor))
        history = self._histories.setdefault(tensor.untyped_storage(), History())
        kept = []
        for past in history.accesses:
            overlaps = past.start < now.stop and now.start < past.stop
            if overlaps and (write or past.write) and clock.get(past.worker, 0) < past.count:
                self.races.append(f"{now} what {past}, without waiting for it ({place()})")
            covered = now.start <= past.start and past.stop <= now.stop
            if not (covered and (write or (past.worker == worker and not past.write))):
                kept.append(past)
        history.accesses = [*kept, now]

    def allocate(self, tensor: Tensor) -> None:
        """Memory of the current stream, which goes back to it when the tensor is gone."""
        storage = tensor.untyped_storage()
        if storage not in self._histories:
            history = self._histories[storage] = History()
            own = self.current
            end = weakref.finalize(storage, self._free, history, own.number, own.clock)
            end.atexit = False

    def _free(self, history: History, number: int, clock: Clock) -> None:
        for past in history.accesses:
            strange = past.worker not in {HOST, number, *history.recorded}
            known = max(clock.get(past.worker, 0), self.host.get(past.worker, 0))
            if strange and known < past.count:
                self.races.append(f"{past} memory that {named(number)} may use again ({place()})")

    def synchronize(self) -> None:
        """The host waits for everything."""
        self.waits[f"synchronize ({place()})"] += 1
        for stream in list(self.streams):
            self.host_waits(stream.clock, of=stream.number)

    def keep_for(self, tensor: Tensor, stream: "Stream") -> None:
        """`Tensor.record_stream`: the memory is free when that stream is done with it, too."""
        history = self._histories.setdefault(tensor.untyped_storage(), History())
        history.recorded.add(stream.number)

    def overlap(self) -> float:
        """Time until all is done over that of the computation alone; 1 if copies are hidden.

        Copies are transfers and what the host does to them. Bytes give the durations, scaled so
        that all copies together take as long as all computation; launching takes no time.
        """
        total = {kind: self.bytes_of(kind) for kind in ("compute", "copy")}
        time: dict[int, float] = {}
        for kind, worker, detail in self._work:
            if kind in total:
                begin = max(time.get(worker, 0.0), time.get(HOST, 0.0))
                time[worker] = begin + detail / max(total[kind], 1)
            elif kind == "record":
                time[detail] = time.get(worker, 0.0)
            else:
                time[worker] = max(time.get(worker, 0.0), time.get(detail, 0.0))
        return max(time.values(), default=0.0)

    def bytes_of(self, wanted: str) -> int:
        """Bytes of all work of a kind, "compute" or "copy"."""
        return sum(size for kind, _, size in self._work if kind == wanted)


class Stream:
    """In place of `torch.cuda.Stream`; one that is kept serves whatever device is there."""

    def __init__(self, device: object = None, priority: int = 0) -> None:
        self.number = next(NUMBERS)
        self.device = torch.device("cuda", 0)
        self._order: Order | None = None
        self._clock: Clock = {}

    @property
    def clock(self) -> Clock:
        """What this stream knows."""
        if self._order is not order():
            self._order, self._clock = order(), {self.number: 0}
            self._order.streams.add(self)
        return self._clock

    def wait_stream(self, other: "Stream") -> None:
        self.wait_event(other.record_event())

    def wait_event(self, event: "Event") -> None:
        order().wait(self, event)

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def synchronize(self) -> None:
        order().waits[f"synchronize ({place()})"] += 1
        order().host_waits(self.clock, of=self.number)

    def query(self) -> bool:
        return all(order().host.get(w, 0) >= n for w, n in self.clock.items())

    def is_capturing(self) -> bool:
        return False  # there are no graphs

    def __enter__(self) -> "Stream":
        self._context = order().on(self)
        self._context.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._context.__exit__(kind, error, trace)


class Event:
    """In place of `torch.cuda.Event`."""

    def __init__(
        self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False
    ) -> None:
        self.number = next(NUMBERS)
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        order().record(self, stream or order().current)

    def wait(self, stream: Stream | None = None) -> None:
        order().wait(stream or order().current, self)

    def synchronize(self) -> None:
        order().waits[f"synchronize ({place()})"] += 1
        order().host_waits(self.clock, of=self.number)

    def query(self) -> bool:
        return all(order().host.get(w, 0) >= n for w, n in self.clock.items())

    def elapsed_time(self, end: "Event") -> float:
        return 1.0


def order() -> Order:
    """That of the device which is there."""
    assert Order.active is not None, "streams need the pretend device"
    return Order.active


def join(clock: Clock, other: Clock) -> None:
    """Adds to a clock what another one knows."""
    for worker, count in other.items():
        clock[worker] = max(clock.get(worker, 0), count)


def named(worker: int) -> str:
    """A worker in messages."""
    return "the host" if worker == HOST else f"stream {worker}"


def span(tensor: Tensor) -> tuple[int, int]:
    """The bytes of its storage between which a tensor lies."""
    if tensor.numel() == 0:
        return 0, 0
    size, first = tensor.element_size(), tensor.storage_offset()
    steps = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return first * size, (first + steps + 1) * size


def place() -> str:
    """The innermost lines of the package that are being run."""
    found: list[str] = []
    frame = sys._getframe(1)
    while frame is not None and len(found) < 3:
        if "/volumediff/" in frame.f_code.co_filename:
            found.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}")
        frame = frame.f_back
    return " < ".join(found)
