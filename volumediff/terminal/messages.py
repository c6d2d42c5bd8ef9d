"""Messages, results and the log file: the one place where the program writes to the terminal.

Messages go to the standard error through the logger `volumediff`, results to the standard output
through `volumediff.results`. `-q` leaves errors alone, `-v` adds details, and a log file receives
everything with the time. What other packages warn about is a detail as well.

From Python, messages appear on the standard error too, unless the logger `volumediff` already has
a handler, which then receives them.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path

from volumediff.errors import UsageError, printable

__all__ = [
    "ResultStream",
    "Verbosity",
    "detail",
    "logging_session",
    "problem",
    "result",
    "say",
    "shows",
]

MESSAGES, RESULTS = logging.getLogger("volumediff"), logging.getLogger("volumediff.results")
ROOT = logging.getLogger()


class Verbosity(IntEnum):
    """The least important message that is shown."""

    QUIET = logging.ERROR
    NORMAL = logging.INFO
    VERBOSE = logging.DEBUG


class _Screen(logging.Handler):
    """Writes messages alone to a standard stream, whichever it is by then: bars replace it."""

    def __init__(self, stream: str, level: int) -> None:
        super().__init__(level)
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream = getattr(sys, self._stream)
        stream.write(f"{self.format(record)}\n")
        stream.flush()


class _Copy(logging.FileHandler):
    """The log file; a full disk there must not end the work."""

    def handleError(self, record: logging.LogRecord) -> None:
        del record


def say(line: str) -> None:
    """A message about the work."""
    _messages().info("%s", printable(line))


def detail(line: str) -> None:
    """A message that `-v` alone shows."""
    _messages().debug("%s", printable(line))


def problem(line: str) -> None:
    """A message that is always shown."""
    _messages().error("%s", printable(line))


def result(text: str) -> None:
    """Lines of the result, on the standard output."""
    if not RESULTS.handlers:
        RESULTS.propagate = False
        RESULTS.setLevel(Verbosity.NORMAL)
        RESULTS.addHandler(_Screen("stdout", Verbosity.NORMAL))
    RESULTS.info("%s", printable(text))


def shows(level: Verbosity) -> bool:
    """Whether messages of a level reach the terminal."""
    return any(isinstance(h, _Screen) and h.level <= level for h in _messages().handlers)


class ResultStream:
    """The standard output as a file for tables: silent with `-q`, and copied to the log file."""

    def __init__(self) -> None:
        self.encoding = getattr(sys.stdout, "encoding", "utf-8")

    def write(self, text: str) -> int:
        """Writes to the terminal, and the same without colours to the log file."""
        if not RESULTS.handlers or any(
            isinstance(h, _Screen) and h.level <= Verbosity.NORMAL for h in RESULTS.handlers
        ):
            sys.stdout.write(text)
        copies = [h for h in RESULTS.handlers if isinstance(h, _Copy)]
        if copies:
            from rich.text import Text

            for line in Text.from_ansi(text).plain.splitlines():
                line = line.rstrip()
                record = RESULTS.makeRecord(RESULTS.name, Verbosity.NORMAL, "", 0, line, (), None)
                copies[0].handle(record)
        return len(text)

    def flush(self) -> None:
        """Writes what waits."""
        sys.stdout.flush()

    def isatty(self) -> bool:
        """Whether someone reads along."""
        return sys.stdout.isatty()


def _messages() -> logging.Logger:
    """The logger of messages, which shows them on the standard error if nobody takes them."""
    if not MESSAGES.handlers:
        MESSAGES.propagate = False
        MESSAGES.setLevel(Verbosity.NORMAL)
        MESSAGES.addHandler(_Screen("stderr", Verbosity.NORMAL))
    return MESSAGES


@contextmanager
def logging_session(level: Verbosity, file: Path | None = None) -> Iterator[None]:
    """Inside, messages and results are shown by level, and copied to a file.

    Warnings and messages of other packages are details, their errors are errors.

    Arguments:
        level: of the least important message that is shown
        file: is added to, not replaced

    Raises:
        UsageError: the file cannot be written
    """
    copies = [] if file is None else [_copy_to(file)]
    foreign = _Screen("stderr", Verbosity.VERBOSE if level == Verbosity.VERBOSE else logging.ERROR)
    screens = {
        MESSAGES: _Screen("stderr", level),
        RESULTS: _Screen("stdout", level),
        ROOT: foreign,
    }
    before = {logger: (logger.handlers[:], logger.level, logger.propagate) for logger in screens}
    for logger, screen in screens.items():
        logger.handlers = [screen, *copies]
        logger.setLevel(logging.WARNING if logger is ROOT else Verbosity.VERBOSE)
        logger.propagate = False
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for logger, (handlers, old, propagate) in before.items():
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(old)
        for handler in copies:
            handler.close()


def _copy_to(file: Path) -> _Copy:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        copy = _Copy(file, encoding="utf-8")
    except OSError as refused:
        raise UsageError(
            f"log file {file}: cannot be written ({refused.strerror}); name another file."
        ) from None
    copy.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    return copy
