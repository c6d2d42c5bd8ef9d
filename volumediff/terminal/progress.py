"""How far a long work is: a bar on a terminal, elsewhere a line now and then."""

import sys
import time
from types import TracebackType
from typing import Any

from volumediff.errors import printable
from volumediff.terminal.messages import Verbosity, say, shows

__all__ = ["Progress", "duration", "pace"]

# Seconds between two lines where there is no terminal: a twentieth of the time so far, so that a
# log of days stays short.
SHORTEST, LONGEST, SHARE = 5.0, 60.0, 1 / 20


class Progress:
    """Shows how much of a work is done, how fast it goes and how long the rest will take.

    Arguments:
        total: number of parts of the work
        unit: what they are, in the plural, such as cases
        done: parts that were finished before
        active: whether anything is shown; one process of a launch speaks
    """

    def __init__(self, total: int, unit: str, *, done: int = 0, active: bool = True) -> None:
        self.total, self.unit, self.done = total, unit, done
        self._active = active and shows(Verbosity.NORMAL)
        self._first, self._began = done, time.monotonic()
        self._said = self._began
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        if self._active and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(bar_width=20),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[left]}", markup=False),
                console=Console(file=sys.stderr),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(
                self.unit, total=self.total, completed=self.done, left=""
            )
        return self

    def update(self, done: int, note: str = "") -> None:
        """So many parts are done.

        Arguments:
            done: of all, those that were finished before included
            note: what else there is to say, such as the loss
        """
        self.done = done
        if self._bar is not None:
            self._bar.update(
                self._task,
                completed=done,
                description=printable(note)[:40] or self.unit,
                left=self.left(),
            )
            return
        now = time.monotonic()
        pause = min(max(SHORTEST, (now - self._began) * SHARE), LONGEST)
        if self._active and (now - self._said >= pause or done == self.total):
            self._said = now
            words = (f"{done} of {self.total} {self.unit}", note, self.left())
            say(", ".join(word for word in words if word))

    def left(self) -> str:
        """Rate and time left, once there is something to go by."""
        seconds, new = time.monotonic() - self._began, self.done - self._first
        if new < 1 or seconds <= 0:
            return ""
        rest = self.total - self.done
        text = pace(seconds / new, self.unit)
        return f"{text}, {duration(rest * seconds / new)} left" if rest else text

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def pace(seconds: float, unit: str) -> str:
    """How fast parts follow each other, which take so many seconds each.

    Arguments:
        seconds: above 0
        unit: in the plural, such as steps
    """
    if seconds >= 1:
        return f"{seconds:.3g} s per {unit.removesuffix('s')}"
    return f"{1 / seconds:.3g} {unit} per s"


def duration(seconds: float) -> str:
    """In the two largest units: 41 s, 12 min, 3 h 20 min, 21 d 4 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
