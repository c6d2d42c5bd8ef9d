"""Files in folders: names made durable, links that are not followed, files open elsewhere."""

import errno
import os
from pathlib import Path

from volumediff.system import WINDOWS

__all__ = ["open_unlinked", "remove_open", "sync_folder"]

NO_FOLLOW = getattr(os, "O_NOFOLLOW", 0)


def sync_folder(folder: Path) -> None:
    """Flushes names of a folder to the disk; Windows opens no folders as files."""
    if not WINDOWS:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_unlinked(name: str, flags: int) -> int:
    """An opener for `open`: creates a file where there is none, and fails for a symbolic link.

    Raises:
        OSError: with ELOOP for a symbolic link, as POSIX has it
    """
    if not NO_FOLLOW and os.path.islink(name):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
    return os.open(name, flags | os.O_CREAT | NO_FOLLOW, 0o666)


def remove_open(path: Path) -> None:
    """Takes a name away whose file may be open; Windows keeps it until the last one closes it."""
    try:
        path.unlink(missing_ok=True)
    except PermissionError:
        if not WINDOWS:
            raise
