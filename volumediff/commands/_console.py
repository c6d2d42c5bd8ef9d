"""The terminal: tables and lines, in which no name of a file can act on it."""

import io
import sys
from typing import Any

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from volumediff.distributed.launch import is_main
from volumediff.errors import printable
from volumediff.terminal.messages import ResultStream

__all__ = ["show_table", "terminal"]

NARROWEST = 12  # columns of text, which may be broken


class _Terminal(Console):
    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def terminal(elsewhere: int) -> Console:
    """The console for results; silent in all but the main process of a launch.

    Arguments:
        elsewhere: columns where there is no terminal
    """
    if not is_main():
        return _Terminal(file=io.StringIO())
    width = None if sys.stdout.isatty() else elsewhere
    return _Terminal(file=ResultStream(), width=width, highlight=False, markup=False)


def show_table(console: Console, table: Table) -> None:
    """Prints a table whose columns at the right are numbers, none of which is ever broken.

    What the terminal is too narrow for is left out from the right, and said.
    """
    for column in table.columns:
        column.no_wrap = column.justify == "right"
        column.overflow = "fold"
    gap = table.padding[1] + table.padding[3]
    left_out = []
    while len(table.columns) > 2 and _least(table.columns, gap) > console.width:
        left_out.append(str(table.columns.pop().header))
    console.print(table)
    if names := [name for name in reversed(left_out) if name]:
        console.print(f"(left out at {console.width} columns: {', '.join(names)})")


def _least(columns: list[Column], gap: int) -> int:
    """Columns of the terminal that a table needs."""
    total = 0
    for column in columns:
        cells = [str(column.header), *map(str, column.cells)]
        width = max(cell_len(line) for cell in cells for line in cell.split("\n"))
        total += (width if column.no_wrap else min(width, NARROWEST)) + gap
    return total
