"""Stop signals set a flag; the loop saves at the next step and ends.

SIGTERM and SIGINT are usual. Batch systems can be asked for SIGUSR1 or SIGUSR2 some minutes before
the time is up, and send SIGXCPU when that of the processor is. They reach the whole process group:
loader workers outlive them, or the parent would find its loader dead before it could save.
"""

import signal
import threading
from types import FrameType, TracebackType

__all__ = ["StopFlag", "outlive_stop_signals"]

STOPS = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGXCPU,
)
# Seconds that a loader worker outlives SIGTERM: enough for the step and the save in progress.
GRACE = 300


class StopFlag:
    """Catches the first stop signal inside a `with` block; a second SIGINT interrupts at once.

    `number` is the signal, or 0 while none came; a process ended by it exits with 128 + number.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopFlag":
        # Handlers can only be set in the main thread; elsewhere the caller's own stay in force.
        if threading.current_thread() is threading.main_thread():
            self._before = {s: signal.signal(s, self._set) for s in STOPS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _set(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number


def outlive_stop_signals() -> None:
    """To be called in loader workers: they live on for a while, until their parent ends them.

    Ignoring SIGTERM for ever would let a program hang at its end, when daemons are terminated.
    """
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(GRACE))
