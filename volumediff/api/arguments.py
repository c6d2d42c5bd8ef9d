"""Types of arguments that the Python functions share."""

from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["Place", "Report", "silent", "sources_of"]

Place = Path | str
Report = Callable[[str], None]


def silent(line: str) -> None:
    """Receives progress lines that nobody asked for."""


def sources_of(given: Place | Sequence[Place]) -> list[Path]:
    """One path or several, as a list."""
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given]
