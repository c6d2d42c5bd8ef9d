"""Signals that ask a program to end.

SIGTERM and SIGINT are everywhere. Batch systems of POSIX can be asked for SIGUSR1 or SIGUSR2 some
minutes before the time is up, and send SIGXCPU when that of the processor is. Windows has none of
these; its consoles send SIGBREAK.
"""

import signal

from volumediff.system import WINDOWS

__all__ = ["STOP_SIGNALS", "outlive_stop_signals"]

NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGBREAK")
STOP_SIGNALS = tuple(getattr(signal, name) for name in NAMES if name in vars(signal))
# Seconds that a loader worker outlives SIGTERM: enough for the step and the save in progress.
GRACE_S = 300


def outlive_stop_signals() -> None:
    """To be called in loader workers: they live on for a while, until their parent ends them.

    Ignoring SIGTERM for ever would let a program hang at its end, when daemons are terminated.
    Windows terminates processes without a signal.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    if not WINDOWS:
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE_S))
