"""The lines of `check` on the terminal, as they come."""

import sys
from collections.abc import Sequence

from rich.text import Text

from volumediff.commands._console import terminal
from volumediff.data.check import CheckLine
from volumediff.errors import printable
from volumediff.terminal.progress import Progress

__all__ = ["CheckLines"]

COLOURS = {"error": "red", "warning": "yellow"}
WIDE = 200  # columns where there is no terminal


class CheckLines:
    """Prints lines and counts them; progress is told on the standard error.

    Arguments:
        quiet: whether lines are counted alone
    """

    def __init__(self, *, quiet: bool) -> None:
        self.errors = self.warnings = self.left_out = 0
        self._files = self._done = 0
        self._quiet = quiet
        self._console = terminal(WIDE)
        self._progress = Progress(0, "cases", active=False)

    def start(self, cases: int) -> None:
        """Takes the number of cases that are going to be read."""
        # A bar would fight with the lines, where both go to a terminal.
        self._progress = Progress(cases, "cases", active=not sys.stdout.isatty())

    def add(self, lines: Sequence[CheckLine]) -> None:
        """Takes the lines of one case, or of the whole set."""
        for line in lines:
            self.errors += line.severity == "error"
            self.warnings += line.severity == "warning"
            self._files += line.code == "summary"
            self.left_out += len(line.files) if line.severity == "warning" else 0
            if not self._quiet:
                self._print(line)
        self._done += any(line.code in ("summary", "refused") for line in lines)
        self._progress.update(self._done)

    def finish(self) -> None:
        """Prints the counts."""
        if self._quiet:
            return
        text = f"{self._files} readable files, {self.errors} errors, {self.warnings} warnings"
        if self.left_out:
            text += f", {self.left_out} files in no case"
        self._console.print(text, soft_wrap=True)

    def _print(self, line: CheckLine) -> None:
        words = (line.case, line.file, line.severity, line.code)
        text = "  ".join(word for word in words if word)
        style = COLOURS.get(line.severity, "")
        whole = printable(f"{text}: {line.message}")
        self._console.print(Text(whole, style=style), soft_wrap=True)
        sys.stdout.flush()
