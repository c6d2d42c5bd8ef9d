"""Errors: the two that a user can cause, that of a faulty component, and tracebacks.

A `UsageError` or `DataError` is one line and an exit code. Anything else is a fault of the program
or of a component, whose author needs the traceback: it is raised, or, where one case of many must
not stop the others, written to a file.
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import TracebackType

__all__ = [
    "LIBRARIES",
    "ComponentError",
    "DataError",
    "UsageError",
    "isolated_cases",
    "isolating_cases",
    "one_line",
    "place_of",
    "printable",
    "shown",
    "traceback_of",
]

# Packages that this one imports: their frames show where an error was noticed, not made.
LIBRARIES = frozenset(
    "accelerate beartype contourpy h5py highdicom huggingface_hub isal jaxtyping markdown "
    "matplotlib mkdocs monai nibabel nilearn numpy PIL platformdirs psutil pydantic pydicom "
    "pymdownx pywt safetensors scipy SimpleITK sklearn torch torchio triton typer yaml".split()
)
_isolated: ContextVar[bool] = ContextVar("isolated", default=False)


class UsageError(Exception):
    """A command or a configuration is wrong; the command line ends with exit code 2."""


class DataError(Exception):
    """A file or a data set is wrong; the command line ends with exit code 1."""


class ComponentError(RuntimeError):
    """A component returned what its contract forbids, such as a map that is not finite."""


@contextmanager
def isolated_cases() -> Iterator[None]:
    """Inside, an unexpected error in one case of many is written to a file, and the others go on.

    The command line works so; elsewhere, and with `--debug`, such an error is raised.
    """
    token = _isolated.set(True)
    try:
        yield
    finally:
        _isolated.reset(token)


def isolating_cases() -> bool:
    """Whether the caller is inside `isolated_cases`."""
    return _isolated.get()


def printable(text: str) -> str:
    """The text without what a terminal would obey: names of files may hold escape sequences.

    Line breaks and tabs stay; what is not printable appears as in Python, such as \\x1b.
    """
    return "".join(c if c in "\n\t" or c.isprintable() else ascii(c)[1:-1] for c in text)


def shown(value: object, most: int = 60) -> str:
    """A value as a message shows it: as in Python, its end left out where it is long."""
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def place_of(error: BaseException) -> str:
    """`file:line` of the innermost frame that is not of a library; empty without a traceback."""
    frames = list(_frames(error.__traceback__))
    own = [(file, line) for module, file, line in frames if not _of_library(module)]
    for file, line in reversed(own or [frame[1:] for frame in frames]):
        return f"{file}:{line}"
    return ""


def one_line(error: BaseException) -> str:
    """Kind, place and message of an unexpected error, for a line that names them."""
    message = " ".join(str(error).split())
    place = place_of(error)
    return f"{type(error).__name__}{place and f' at {place}'}{message and f': {message}'}"


def traceback_of(error: BaseException) -> str:
    """The whole traceback with the errors before it, those that a message replaced among them."""
    seen: BaseException | None = error
    while seen is not None:
        seen.__suppress_context__ = False
        seen = seen.__context__ if seen.__cause__ is None else seen.__cause__
    return "".join(traceback.format_exception(error))


def _frames(found: TracebackType | None) -> Iterator[tuple[str, str, int]]:
    """Module, file and line of every frame, outermost first."""
    while found is not None:
        code = found.tb_frame.f_code
        yield found.tb_frame.f_globals.get("__name__", ""), code.co_filename, found.tb_lineno
        found = found.tb_next


def _of_library(module: str) -> bool:
    root = module.partition(".")[0]
    return root in LIBRARIES or root in sys.stdlib_module_names
