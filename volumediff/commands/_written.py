"""The last lines of a command: what it wrote where, and what to do next."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from volumediff.commands._options import say
from volumediff.terminal.progress import duration

__all__ = ["WrittenFiles", "size"]


class WrittenFiles:
    """Counts the files that change below some paths from now on.

    Arguments:
        places: folders and files that a command writes; they need not exist yet
    """

    def __init__(self, *places: Path) -> None:
        self._places = places
        self._before = {place: _files(place) for place in places}
        self._began = time.monotonic()

    def finish(self, *, look: Path | None = None, then: str = "") -> None:
        """Says what was written, and how it goes on.

        Arguments:
            look: the page to open first
            then: the next command, or another advice in a few words
        """
        parts = []
        for place in self._places:
            before = self._before[place]
            new = {p: f for p, f in _files(place).items() if f != before.get(p)}
            if place.is_file() and new:
                parts.append(f"{place} ({size(new[place][0])})")
            elif new:
                files = "1 file" if len(new) == 1 else f"{len(new)} files"
                parts.append(f"{files} ({size(sum(f[0] for f in new.values()))}) to {place}")
        seconds = duration(time.monotonic() - self._began)
        say(
            f"wrote {' and '.join(parts)} in {seconds}"
            if parts
            else f"wrote nothing new, {seconds}"
        )
        if look is not None:
            say(f"open {look} in a browser")
        if then:
            say(f"next: {then}")


def size(count: int) -> str:
    """Bytes as people read them: 812 B, 4.1 MB."""
    if count < 1000:
        return f"{count} B"
    shown = float(count)
    for unit in ("kB", "MB", "GB"):
        shown /= 1000
        if shown < 1000 or unit == "GB":
            break
    return f"{shown:.0f} {unit}" if shown >= 100 else f"{shown:.1f} {unit}"


def _files(place: Path) -> dict[Path, tuple[int, int]]:
    """Size and time of change of every file at or below a path."""
    return {path: (stat.st_size, stat.st_mtime_ns) for path, stat in _found(place)}


def _found(place: Path) -> Iterator[tuple[Path, os.stat_result]]:
    try:
        if not place.is_dir():
            yield place, place.stat()
            return
        for entry in os.scandir(place):
            if entry.is_dir(follow_symlinks=False):
                yield from _found(Path(entry.path))
            else:
                yield Path(entry.path), entry.stat(follow_symlinks=False)
    except OSError:  # another process moves files here, or there is nothing yet
        return
