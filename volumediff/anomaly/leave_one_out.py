"""All of a sequence but one, without a copy: what a volume may be compared with."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, overload

__all__ = ["Without"]

Item = TypeVar("Item")


@dataclass(frozen=True, eq=False)
class Without(Sequence[Item], Generic[Item]):
    """The items but the one at `left_out`, each looked up when it is asked for.

    Arguments:
        items: the sequence
        left_out: index of the item that is not there
    """

    items: Sequence[Item]
    left_out: int

    def __len__(self) -> int:
        return len(self.items) - 1

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self.items[place + (place >= self.left_out)]

    def __iter__(self) -> Iterator[Item]:
        return (self[i] for i in range(len(self)))
