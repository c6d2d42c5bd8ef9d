"""Files that keep processes out: one holder of a folder, several together, and those who wait.

The system locks an open file and frees it when its process ends, however it does. Some file
systems of clusters have no such locks (Lustre without the option flock, some NFS). There a
second file, created by its holder alone, stands for the lock of a folder. It stays behind when the
process is killed: on the same host the next process then takes it over, on another one the user
removes it.

A lock file is opened for itself: a symbolic link in its place, which would have another file
written, is refused.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, TextIO

from volumediff.errors import DataError
from volumediff.storage.atomic import free_space
from volumediff.system.file_locks import lock_file
from volumediff.system.folders import open_unlinked, remove_open
from volumediff.system.resources import is_alive

__all__ = ["FileLock", "Held", "exclusive", "holder", "open_itself", "sign", "take"]

# What systems say that cannot lock: some network and cluster file systems.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


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
        file = open(path, "a+", encoding="utf-8", opener=open_unlinked)
        try:
            mine = lock_file(file, wait=False)
        except OSError as error:
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
            if not mine:
                file.seek(0)
                other = file.read().strip() or "unknown"
                file.close()
                raise Held(f"{other}; wait for it")
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
            if found.get("host") != own["host"] or _may_live(found.get("pid")):
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


def _may_live(pid: object) -> bool:
    if not isinstance(pid, int) or pid < 1:
        return True  # unknown: nobody is robbed of a lock
    return is_alive(pid)


def open_itself(path: Path) -> BinaryIO:
    """A file for reading and writing, made where it is not there; never what a link points to.

    Raises:
        DataError: a symbolic link, or it cannot be written
    """
    try:
        return open(path, "r+b", buffering=0, opener=open_unlinked)
    except OSError as error:
        if error.errno == errno.ELOOP:
            reason = "is a symbolic link, which is not followed here; take it away"
            raise DataError(f"{path}: {reason}, or choose another output folder.") from None
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); choose another output folder."
        ) from None


def take(file: BinaryIO, *, shared: bool = False, wait: bool = True) -> bool:
    """Locks an open file, in place of any lock that it has; closing it gives the lock back.

    Arguments:
        shared: whether others may hold it as well
        wait: whether to wait for those who hold it

    Returns:
        whether it is held now

    Raises:
        DataError: the file system has no locks
    """
    try:
        return lock_file(file, shared=shared, wait=wait)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise DataError(
            f"{file.name}: this file system cannot lock files ({error.strerror}), so that "
            "processes would write over each other; choose an output folder on another one."
        ) from None


def sign(file: BinaryIO, text: str) -> None:
    """Writes into a lock file what others may read there.

    Raises:
        DataError: the disk is full
    """
    left = text.encode()
    try:
        file.seek(0)
        file.truncate(0)
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise DataError(
            f"{file.name}: cannot be written ({error.strerror}); {free_space(Path(file.name))}."
        ) from None


def holder() -> str:
    """This process, for others to read."""
    return f"host {socket.gethostname()}, pid {os.getpid()}"


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Waits until no other process is in such a block for the same file; leaves nothing behind.

    Arguments:
        path: what is made inside, which need not be there; its folder is created

    Raises:
        DataError: the folder cannot be written, or the file system has no locks
    """
    lock = path.with_name(f".{path.name[:100]}.lock")
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{lock.parent}: cannot be written ({error.strerror}).") from None
    while True:
        file = open_itself(lock)
        take(file)
        # Whoever held it has removed its name: another file may have it now, or none.
        try:
            named = os.path.samestat(os.fstat(file.fileno()), lock.stat())
        except FileNotFoundError:
            named = False
        if named:
            break
        file.close()
    with file:
        try:
            yield
        finally:
            remove_open(lock)
