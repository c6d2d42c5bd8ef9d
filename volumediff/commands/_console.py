"""The terminal: tables and lines, in which no name of a file can act on it."""

import io
import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from volumediff.distributed.launch import is_main
from volumediff.errors import printable
from volumediff.terminal.messages import ResultStream

__all__ = ["terminal"]


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
