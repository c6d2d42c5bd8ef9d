"""What this process may use, and has used: cores and memory."""

import os

import psutil

from volumediff.system import MACOS, WINDOWS

if not WINDOWS:
    import resource

__all__ = ["available_memory", "is_alive", "limit_memory", "peak_memory", "usable_cores"]


def usable_cores() -> int:
    """Cores that this process may run on; all of the machine on macOS, which binds none."""
    return os.cpu_count() or 1 if MACOS else len(psutil.Process().cpu_affinity())


def available_memory() -> int:
    """Bytes that this process may have: the machine's, or its own limit."""
    total = psutil.virtual_memory().total
    if WINDOWS:
        return total
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return total if limit == resource.RLIM_INFINITY else min(total, limit)


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    if WINDOWS:
        return psutil.Process().memory_info().peak_wset
    unit = 1 if MACOS else 1024  # macOS counts in bytes, Linux in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def limit_memory(size: int) -> None:
    """Lets this process have so many bytes of addresses, where the system knows such limits.

    macOS has the call, and refuses or ignores it.
    """
    if WINDOWS or MACOS:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there, whoever owns it."""
    return psutil.pid_exists(pid)
