"""RUN/: one process group at a time, one configuration that never changes, and a session record.

config.yaml  manifest.json  splits.json  sources.json  seen.json  statistics/
metrics.jsonl  progress.png  previews/  checkpoints/  run.lock
inputs/ (what the training volumes are like)  preparation.json (what was done to them before)
borrowed/ (copies of what comes from other runs)  landmarks.json (intensities that are fitted)
label_names.json (what the labels of the data set are called)
"""

import platform
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from volumediff.distributed.processes import on_main
from volumediff.errors import DataError, UsageError
from volumediff.settings.run_config import RunConfig, changes, saved_config
from volumediff.storage.folder import clear_leftovers, discard
from volumediff.storage.locks import FileLock, Held
from volumediff.storage.records import Record, read, write, write_text

__all__ = ["begin", "keep_config", "locked", "record_session", "sessions_of"]

PACKAGES = ("volumediff", "torch", "accelerate", "numpy", "safetensors", "nibabel", "torchio")
SESSIONS = "manifest.json"


class Sessions(Record):
    """manifest.json: every start of the run; a record for people, read back to be added to."""

    format: Literal[1] = 1
    sessions: tuple[dict[str, Any], ...] = ()


@contextmanager
def locked(run: Path, accelerator: Accelerator, report: Callable[[str], None]) -> Iterator[None]:
    """Holds RUN/run.lock in the main process.

    Raises:
        UsageError: another process trains in this folder
        DataError: the folder cannot be written
    """
    lock = on_main(accelerator, lambda: _lock(run), local=True)
    if lock is not None and lock.note is not None:
        report(lock.note)
    try:
        yield
    finally:
        if lock is not None:
            _leave_nothing(run)
            lock.close()


def _leave_nothing(run: Path) -> None:
    """Removes the folder of a run that ended before its first session was recorded."""
    if not (run / SESSIONS).is_file() and not (run / "checkpoints").is_dir():
        _empty(run)
        with suppress(OSError):  # files that somebody else has put there stay
            (run / "run.lock").unlink()
            run.rmdir()


def _lock(run: Path) -> FileLock:
    try:
        run.mkdir(parents=True, exist_ok=True)
        return FileLock.take(run / "run.lock")
    except Held as held:
        raise UsageError(
            f"{run}: another process trains here ({held}), or choose another output=DIR."
        ) from None
    except OSError as error:
        raise DataError(
            f"{run}: cannot be written ({error.strerror}); choose output=DIR."
        ) from None


def keep_config(run: Path, config: RunConfig) -> None:
    """Writes RUN/config.yaml whole, with its SHA-256 in the last line.

    Raises:
        DataError: no space or no permission; the old one stays
    """
    write_text(run / "config.yaml", config.to_yaml())


def begin(run: Path, config: RunConfig) -> None:
    """Saves the configuration, or checks it against the one that the run began with; tidies up.

    A run without a checkpoint begins anew.

    Raises:
        UsageError: the run was started with other settings; names each of them
    """
    path = run / "config.yaml"
    if path.is_file():
        different = changes(saved_config(run), config)
        if different and not any((run / "checkpoints").glob("last-*")):
            _empty(run)  # no step was kept, for example because the data were not found
        elif different:
            raise UsageError(
                f"{run}: was started with other settings ({'; '.join(different)}); "
                "choose another output=DIR, or restore the old settings."
            )
    keep_config(run, config)
    clear_leftovers(run / "checkpoints")


def _empty(run: Path) -> None:
    """Removes what follows from a configuration that never trained."""
    for name in ("statistics", "inputs", "borrowed"):
        discard(run / name)
    names = ("splits.json", "sources.json", "seen.json", "landmarks.json", "label_names.json")
    names = (*names, "preparation.json", "metrics.jsonl", "config.yaml")
    for name in names:
        (run / name).unlink(missing_ok=True)


def record_session(run: Path, facts: Mapping[str, Any]) -> None:
    """Adds this start of the run to manifest.json: versions, machine, threads, and the facts.

    Raises:
        DataError: the manifest is damaged
    """
    before = sessions_of(run)
    session = {
        "started": _now(),
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        # Sums depend on it: runs are bit-identical only with equal thread counts.
        "threads": torch.get_num_threads(),
        **facts,
    }
    write(run / SESSIONS, Sessions(sessions=(*before, session)))


def sessions_of(run: Path) -> tuple[dict[str, Any], ...]:
    """Every start of a run, the first one first.

    Raises:
        DataError: the manifest is damaged
    """
    if not (run / SESSIONS).is_file():
        return ()
    advice = "remove it: it records what ran, and nothing else depends on it"
    return read(run / SESSIONS, Sessions, advice=advice).sessions


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
