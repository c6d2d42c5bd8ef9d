"""Programs that tests run: within a time, and nothing of them stays behind.

A launcher starts its processes in sessions of their own, so that no process group holds them all,
and killing the launcher alone would leave them holding its pipes. Every process of a program
therefore inherits a mark in its environment, by which it is found and killed.
"""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

__all__ = ["Program", "run_program", "running", "torchrun"]

ROOT = Path(__file__).parents[1]
MARK = "VOLUMEDIFF_TEST_PROGRAM"
# Seconds that a process gets to write its stack.
WRITING = 5


class Program(subprocess.Popen):
    """A program and all that it starts; what they write is text.

    Arguments:
        words: the command
        environment: variables beside those of this process
        more: see `subprocess.Popen`
    """

    def __init__(self, words: Sequence[object], environment=None, **more) -> None:
        self.mark = uuid.uuid4().hex
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        ours = {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        theirs = {"PYTHONFAULTHANDLER": "1", MARK: self.mark}
        super().__init__(
            list(map(str, words)),
            text=True,
            start_new_session=True,
            env={**os.environ, **ours, **(environment or {}), **theirs},
            **more,
        )

    def all_processes(self) -> list[psutil.Process]:
        """Every process of the program that is alive."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                alive = process.status() != psutil.STATUS_ZOMBIE
                if alive and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found

    def signal_all(self, number: int) -> None:
        """Sends a signal to every process of the program."""
        for process in self.all_processes():
            with suppress(psutil.Error):
                process.send_signal(number)

    def kill_all(self) -> None:
        """Ends every process of the program, also those that it starts meanwhile."""
        while self.all_processes():
            self.signal_all(signal.SIGKILL)
            time.sleep(0.01)

    def ended(self, timeout: float) -> subprocess.CompletedProcess[str]:
        """The program when it has ended.

        Raises:
            AssertionError: it has not ended in time; it is killed, and the error holds what it
                has written, with the stacks of all threads of its Python processes
        """
        try:
            out, said = self.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            self.signal_all(signal.SIGCONT)  # a stopped process writes nothing
            self.signal_all(signal.SIGABRT)
            with suppress(subprocess.TimeoutExpired):
                self.communicate(timeout=WRITING)
            self.kill_all()
            out, said = self.communicate()
            raise AssertionError(
                f"{self.args}: no end after {timeout:g} s\n{out or ''}\n{said or ''}"
            ) from None
        return subprocess.CompletedProcess(self.args, self.returncode, out, said)


@contextmanager
def running(words: Sequence[object], environment=None, **more) -> Iterator[Program]:
    """A program that ends with the `with` block at the latest."""
    with Program(words, environment, **more) as program:
        try:
            yield program
        finally:
            program.kill_all()


def run_program(
    words: Sequence[object],
    *,
    timeout: float = 500,
    environment=None,
    code: int | None = 0,
    **more,
) -> subprocess.CompletedProcess[str]:
    """A program from its start to its end.

    Arguments:
        timeout: seconds
        code: with which it has to end; None for any

    Raises:
        AssertionError: it ended with another code, or not in time; says what was written
    """
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with running(words, environment, **pipes, **more) as program:
        done = program.ended(timeout)
    assert code in (None, done.returncode), f"exit code {done.returncode}\n{done.stderr[-5000:]}"
    return done


def torchrun(ranks: int) -> list[str]:
    """The words before a program that so many processes run."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return [*start, "--nproc_per_node", str(ranks)]
