"""Locks of open files, held alone or together; the system frees them when their holder ends.

POSIX has flock for that. Windows locks ranges of bytes, each for one holder. There a file has
`PLACES` bytes far behind its end: whoever holds it together with others has one of them, and who
holds it alone has them all. The content stays readable, which a locked byte of it would not.
"""

import errno
import os
import time
from typing import IO

from volumediff.system import WINDOWS

if WINDOWS:
    import msvcrt
else:
    import fcntl

__all__ = ["lock_file"]

HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)
FIRST, PLACES = 2**30, 64  # msvcrt counts in 31 bits
PAUSE_S = 0.05  # between two attempts, where the system cannot wait


def lock_file(file: IO, *, shared: bool = False, wait: bool = True) -> bool:
    """Locks an open file, in place of any lock that it has; closing it gives the lock back.

    Arguments:
        file: opened for writing
        shared: whether others may hold it as well
        wait: whether to wait for those who hold it

    Returns:
        whether it is held now

    Raises:
        OSError: the file system has no locks
    """
    return _lock(file.fileno(), shared, wait)


def _lock_by_flock(descriptor: int, shared: bool, wait: bool) -> bool:
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    try:
        fcntl.flock(descriptor, how)
    except OSError as error:
        if error.errno in HELD:
            return False
        raise
    return True


def _lock_by_ranges(descriptor: int, shared: bool, wait: bool) -> bool:
    singles = [(FIRST + (os.getpid() + i) % PLACES, 1) for i in range(PLACES)]
    everything = [(FIRST, PLACES)]
    for first, count in singles + everything:
        _change(descriptor, first, count, msvcrt.LK_UNLCK)
    while True:
        for first, count in singles if shared else everything:
            if _change(descriptor, first, count, msvcrt.LK_NBLCK):
                return True
        if not wait:
            return False
        time.sleep(PAUSE_S)


def _change(descriptor: int, first: int, count: int, how: int) -> bool:
    """Locks or unlocks bytes; False where another has them, or nobody has."""
    place = os.lseek(descriptor, 0, os.SEEK_CUR)
    os.lseek(descriptor, first, os.SEEK_SET)
    try:
        msvcrt.locking(descriptor, how, count)
    except OSError as error:
        if how == msvcrt.LK_UNLCK or error.errno in HELD:
            return False
        raise
    finally:
        os.lseek(descriptor, place, os.SEEK_SET)
    return True


_lock = _lock_by_ranges if WINDOWS else _lock_by_flock
