"""Locks that processes hold together, or wait for; see `lock` for one holder of a folder.

The kernel unlocks a file when its holder ends, however it ends.

A lock file is opened for itself: a symbolic link in its place, which would have another file
written, is refused.
"""

import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from volumediff.errors import DataError
from volumediff.storage.atomic import free_space

__all__ = ["exclusive", "holder", "never_followed", "open_itself", "sign", "take"]

# What systems say that cannot lock: some network and cluster file systems.
NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


def open_itself(path: Path) -> BinaryIO:
    """A file for reading and writing, made where it is not there; never what a link points to.

    Raises:
        DataError: a symbolic link, or it cannot be written
    """
    try:
        return open(path, "r+b", buffering=0, opener=never_followed)
    except OSError as error:
        if error.errno == errno.ELOOP:
            reason = "is a symbolic link, which is not followed here; take it away"
            raise DataError(f"{path}: {reason}, or choose another output folder.") from None
        raise DataError(
            f"{path}: cannot be written ({error.strerror}); choose another output folder."
        ) from None


def never_followed(name: str, flags: int) -> int:
    """For `open`: creates a file where there is none, and fails for a symbolic link."""
    return os.open(name, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666)


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
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise DataError(
                f"{file.name}: this file system cannot lock files ({error.strerror}), so that "
                "processes would write over each other; choose an output folder on another one."
            ) from None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


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
        # Whoever held it has removed its name: another file may have it now.
        if lock.exists() and os.path.samestat(os.fstat(file.fileno()), lock.stat()):
            break
        file.close()
    with file:
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
