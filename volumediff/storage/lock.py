"""One holder of a folder at a time, among all processes of all hosts.

The kernel locks an open file (flock) and frees it when its process ends, however it does. Some
file systems of clusters have no such locks (Lustre without the option flock, some NFS). There a
second file, created by its holder alone, stands for the lock. It stays behind when the process is
killed: on the same host the next process then takes it over, on another one the user removes it.
"""

import errno
import fcntl
import json
import os
import socket
import time
from pathlib import Path
from typing import TextIO

from volumediff.storage.shared_locks import holder, never_followed

__all__ = ["FileLock", "Held"]

HELD = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}


class Held(Exception):
    """Another process holds the lock; says which, and what to do."""


class FileLock:
    """A lock that this process holds until `close`.

    Arguments:
        file: open, with who holds it; locked by the kernel where there are such locks
        sentinel: stands for the lock where there are none

    Attributes:
        note: a line for the user where the kernel's lock is missing
    """

    def __init__(
        self, file: TextIO, sentinel: Path | None = None, note: str | None = None
    ) -> None:
        self._file, self._sentinel, self.note = file, sentinel, note

    @classmethod
    def take(cls, path: Path) -> "FileLock":
        """Takes the lock that a file stands for; it is created if it is not there.

        Raises:
            Held: another process has it
            OSError: the folder cannot be written
        """
        file = open(path, "a+", encoding="utf-8", opener=never_followed)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            other = file.read().strip() or "unknown"
            if error.errno in HELD:
                file.close()
                raise Held(f"{other}; wait for it") from None
            try:
                sentinel = _create(path.with_name(f"{path.name}.held"))
            except BaseException:
                file.close()
                raise
            note = (
                f"{path}: the file system has no locks ({error.strerror}); {sentinel.name} keeps "
                "other processes out instead."
            )
            lock = cls(file, sentinel, note)
        else:
            lock = cls(file)
        try:
            file.truncate(0)
            started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
            file.write(f"{holder()}, since {started}\n")
            file.flush()
        except OSError:
            lock.close()
            raise
        return lock

    def close(self) -> None:
        """Gives it back."""
        if self._sentinel is not None:
            self._sentinel.unlink(missing_ok=True)
        try:
            self._file.close()
        except OSError:  # what is left in the buffer cannot be written either
            pass


def _create(path: Path) -> Path:
    """Creates the file that stands for a lock, in place of one whose process is gone."""
    own = {"host": socket.gethostname(), "pid": os.getpid()}
    found: dict[str, object] = {}
    for _ in range(2):
        try:
            with open(path, "x", encoding="utf-8") as file:
                json.dump(own, file)
            return path
        except FileExistsError:
            found = _read(path)
            if found.get("host") != own["host"] or _alive(found.get("pid")):
                break
            _remove(path, found)
    text = ", ".join(f"{name} {value}" for name, value in found.items()) or "unknown"
    raise Held(f"{text}; wait for it, or remove {path} if it is gone")


def _remove(path: Path, found: dict[str, object]) -> None:
    """Removes what a process left behind, unless another one has replaced it meanwhile."""
    aside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    if _read(aside) == found:
        aside.unlink()
    else:
        aside.rename(path)


def _read(path: Path) -> dict[str, object]:
    """Who holds it; nothing where that is not written yet."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _alive(pid: object) -> bool:
    if not isinstance(pid, int) or pid < 1:
        return True  # unknown: nobody is robbed of a lock
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        return True
    return True
