"""Where processes wait for each other for as long as it takes, provided that all of them live.

One process may work for hours while the others wait: statistics of all volumes, previews. One that
is frozen, or whose machine is gone, is to be noticed within a minute all the same. So waits are on
no clock of their own: a thread of every process says again and again that it lives, and how many
meetings it has come to; who waits gives up when another one has said nothing new for too long.
"""

import atexit
import threading
import time
from collections.abc import Sequence
from datetime import timedelta

import torch.distributed as dist

__all__ = ["Meeting", "Silence"]

# Seconds between two signs of life, while this process works and while it waits.
BEAT, WAITING = 1.0, 0.005
# Seconds that the thread gets to end; it may be waiting for the store of a process that is gone.
ENDING = 5.0


class Silence(RuntimeError):
    """Another process gives no sign of life."""


class Meeting:
    """All processes of a launch; each of them makes one.

    Arguments:
        rank: of this process
        size: number of processes
        store: where they leave their signs of life; nobody else uses it
        patience: how long a process may be silent
    """

    def __init__(self, rank: int, size: int, store: dist.Store, patience: timedelta) -> None:
        self.patience = patience
        self._rank, self._store = rank, store
        self._keys = [str(other) for other in range(size)]
        self._came = [0] * size  # meetings that each has come to
        self._said = [""] * size
        self._heard = [time.monotonic()] * size
        self._failure: Exception | None = None
        self._waiting, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._live, name="signs of life", daemon=True)
        self._thread.start()
        # A thread that is inside the store when the interpreter goes would abort the process.
        atexit.register(self.end)

    def wait(self) -> None:
        """Returns when every process has come here as often as this one.

        Raises:
            Silence: one of them has given no sign of life for too long
        """
        self._came[self._rank] += 1
        self._waiting.set()
        while min(self._came) < self._came[self._rank]:
            self._check()
            time.sleep(WAITING)
        self._waiting.clear()

    def end(self) -> None:
        """Gives no more signs of life."""
        self._ended.set()
        self._waiting.set()
        self._thread.join(ENDING)

    def _check(self) -> None:
        if self._failure is not None:
            raise Silence(str(self._failure))
        if time.monotonic() - min(self._heard) > self.patience.total_seconds():
            raise Silence("no sign of life")

    def _live(self) -> None:
        beats = 0
        try:
            while not self._ended.is_set():
                beats += 1
                self._store.set(self._keys[self._rank], f"{beats} {self._came[self._rank]}")
                self._hear(self._store.multi_get(self._keys))
                if self._waiting.wait(BEAT):
                    time.sleep(WAITING)
        except (dist.DistError, RuntimeError) as error:
            self._failure = error

    def _hear(self, said: Sequence[bytes]) -> None:
        now = time.monotonic()
        for other, words in enumerate(words.decode() for words in said):
            if words != self._said[other]:
                self._said[other], self._heard[other] = words, now
                if other != self._rank:
                    self._came[other] = int(words.partition(" ")[2])
