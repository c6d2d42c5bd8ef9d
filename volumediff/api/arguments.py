"""Types of arguments that the Python functions share."""

from collections.abc import Callable
from pathlib import Path

__all__ = ["Place", "Report", "silent"]

Place = Path | str
Report = Callable[[str], None]


def silent(line: str) -> None:
    """Receives progress lines that nobody asked for."""
