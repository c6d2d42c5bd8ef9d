"""Stop signals set a flag; the loop saves at the next step and ends.

They reach the whole process group: loader workers outlive them, or the parent would find its
loader dead before it could save.
"""

import signal
import threading
from types import FrameType, TracebackType

from volumediff.system.stop_signals import STOP_SIGNALS

__all__ = ["StopFlag"]


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
            self._before = {s: signal.signal(s, self._set) for s in STOP_SIGNALS}
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
