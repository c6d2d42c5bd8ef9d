"""The contract of a layout: does a folder look like it, and which cases are in it.

A table of cases that somebody wrote comes first. A data set of its own comes before a convention
that it may follow, too (ATLAS is nearly BIDS), and a plain folder is what is left.
"""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, Problem

__all__ = ["ANYTHING", "CONVENTION", "DATA_SET", "LISTED", "Found", "Layout"]

Found = tuple[list[Case], list[Problem]]

LISTED, DATA_SET, CONVENTION, ANYTHING = 0, 1, 2, 3


class Layout(ABC):
    """How one data set, or all that follow a convention, lie on a disk.

    Attributes:
        rank: which layouts are asked first; two of one rank that fit are an error
        tables: names of the tables and descriptions that it reads, with wildcards
    """

    rank: ClassVar[int] = DATA_SET
    tables: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def recognises(self, root: Path) -> bool:
        """Whether the folder (or file) has what only this layout has.

        Names decide, a table's header at most: no volume is opened, and a folder with hundreds of
        thousands of files takes no time.
        """

    @abstractmethod
    def read(self, root: Path) -> Found:
        """The cases, in any order, and what cannot be used or was left out.

        Raises:
            DataError: a table or description that is missing or cannot be understood; one line
        """
