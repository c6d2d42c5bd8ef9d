"""A process that lacks what Windows lacks: `install()` before volumediff is imported.

Hidden are fcntl, resource, the signals and calls of POSIX alone, and links. Locks are those of
bytes, as msvcrt has them; workers are spawned; and a file that this process has open can be
neither removed nor renamed, nor can a folder that holds one. Not pretended are paths with drives
and backslashes, limits of their length, consoles, and every library that is not our own: they were
imported before, and believe in the true system.
"""

import errno
import os
import shutil
import signal
import struct
import sys
import types

ABSENT = {
    os: "fork O_NOFOLLOW sched_getaffinity sysconf setsid mkfifo".split(),
    signal: "SIGUSR1 SIGUSR2 SIGXCPU SIGKILL SIGHUP SIGALRM alarm setitimer".split(),
}


def install():
    import fcntl
    import multiprocessing
    import subprocess  # noqa: F401 asks for msvcrt to know the system

    import accelerate  # noqa: F401
    import nibabel  # noqa: F401
    import psutil  # noqa: F401
    import torch.distributed
    import torch.utils.data  # noqa: F401
    import torchio  # noqa: F401

    multiprocessing.set_start_method("spawn", force=True)
    sys.modules["msvcrt"] = _msvcrt(fcntl)
    sys.modules["fcntl"] = sys.modules["resource"] = None
    for module, names in ABSENT.items():
        for name in names:
            delattr(module, name)
    _refuse()
    before, os.name = os.name, "nt"
    try:
        from volumediff.system import (  # noqa: F401
            file_locks,
            file_names,
            folders,
            resources,
            stop_signals,
        )
    finally:
        os.name = before


def _msvcrt(fcntl):
    """Locks of byte ranges that belong to an open file, as Linux has them (Windows, too)."""
    module = types.ModuleType("msvcrt")
    module.LK_UNLCK, module.LK_NBLCK = 0, 2

    def locking(descriptor, how, count):
        kind = fcntl.F_WRLCK if how == module.LK_NBLCK else fcntl.F_UNLCK
        start = os.lseek(descriptor, 0, os.SEEK_CUR)
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, struct.pack("hhqqi", kind, 0, start, count, 0))

    module.locking = locking
    return module


def _refuse():
    opened, killed = os.open, os.kill

    def kill(pid, number):
        assert number != 0, "os.kill(pid, 0) is Ctrl-C on Windows"
        killed(pid, number)

    def open_(path, flags, mode=0o777, *, dir_fd=None):
        if os.path.isdir(path):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opened(path, flags, mode, dir_fd=dir_fd)

    def symlink(source, target, *args, **kwargs):
        raise OSError(errno.EPERM, "A required privilege is not held by the client", target)

    os.kill, os.open, os.symlink = kill, open_, symlink
    for name in ("unlink", "remove", "rename", "replace", "rmdir"):
        setattr(os, name, _closed_only(getattr(os, name)))
    shutil._use_fd_functions = False


def _closed_only(function):
    def call(path, *others, **kwargs):
        whole = os.path.realpath(path)
        for file in _in_use():
            if file == whole or file.startswith(whole + os.sep):
                raise PermissionError(errno.EACCES, "The file is in use by a process", str(path))
        return function(path, *others, **kwargs)

    return call


def _in_use():
    """Files that this process has open or mapped."""
    found = set()
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            found.add(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:
            pass
    with open("/proc/self/maps", encoding="utf-8") as lines:
        found |= {line[line.index("/") :].strip() for line in lines if "/" in line}
    return found
