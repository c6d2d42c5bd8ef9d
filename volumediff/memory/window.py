"""A store of some planes of a volume, by their numbers in the volume."""

from collections.abc import Callable

from torch import Tensor

from volumediff.memory.slabs import Range
from volumediff.memory.store import Store

__all__ = ["StoreWindow", "starting_at"]


class StoreWindow(Store):
    """Planes first, first + 1, ... of a volume.

    Arguments:
        store: of these planes
        first: number of the first of them
    """

    def __init__(self, store: Store, first: int) -> None:
        self.store, self.first, self.depth = store, first, store.depth

    def ask(self, wanted: Range) -> Callable[[], Tensor]:
        return self.store.ask(self._inside(wanted))

    def write(self, lo: int, slab: Tensor) -> None:
        self.store.write(lo - self.first, slab)

    def ask_sum(self, wanted: Range) -> Callable[[], Tensor | None]:
        return self.store.ask_sum(self._inside(wanted))

    def add(self, lo: int, slab: Tensor, there: Tensor | None) -> None:
        self.store.add(lo - self.first, slab, there)

    def complete(self) -> None:
        self.store.complete()

    def _inside(self, wanted: Range) -> Range:
        return wanted[0] - self.first, wanted[1] - self.first


def starting_at(first: int, store: Store) -> Store:
    """The store, whose first plane has this number in the volume."""
    return StoreWindow(store, first) if first else store
