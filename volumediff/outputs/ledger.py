"""The ledger of an output folder: which cases are finished, proved by SHA-256.

OUT/ledger.jsonl has one line per attempt. A case counts as finished when its newest line says so,
for the same settings and the same input bytes, and every output still has the bytes written. The
line is appended after all files of the case are in place, so that a killed run leaves either a
finished case or one that is done again.
"""

import fcntl
import hashlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from volumediff.errors import DataError, UsageError
from volumediff.storage.folder import sha256

__all__ = ["Ledger", "fingerprint", "open_ledger"]

NAME = "ledger.jsonl"


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@dataclass
class Ledger:
    """The ledger of a folder that this process holds.

    Arguments:
        folder: where the outputs go
        job: fingerprint of all settings that shape the outputs
        entries: newest line of each case
    """

    folder: Path
    job: str
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)

    def finished(self, case: str, inputs: Mapping[str, str]) -> bool:
        """Whether the outputs of a case are there, unchanged, and made from these inputs."""
        entry = self.entries.get(case)
        if entry is None or entry["status"] != "done":
            return False
        if entry["job"] != self.job or entry["inputs"] != dict(inputs):
            return False
        for name, wanted in entry["outputs"].items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != wanted["bytes"]:
                return False
            if sha256(path) != wanted["sha256"]:
                return False
        return True

    def done(
        self,
        case: str,
        *,
        inputs: Mapping[str, str],
        outputs: list[Path],
        facts: Mapping[str, Any],
    ) -> None:
        """Records a finished case."""
        files = {
            path.relative_to(self.folder).as_posix(): {
                "bytes": path.stat().st_size,
                "sha256": sha256(path),
            }
            for path in outputs
        }
        self._append(
            {"case": case, "status": "done", "inputs": dict(inputs), "outputs": files, **facts}
        )

    def failed(self, case: str, message: str) -> None:
        """Records a case that could not be done; it is tried again next time."""
        self._append({"case": case, "status": "failed", "error": message})

    def _append(self, entry: dict[str, Any]) -> None:
        entry = {**entry, "job": self.job, "time": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        path = self.folder / NAME
        with open(path, "ab+") as file:
            # a line cut by a killed process is closed first, so that it spoils no other
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    file.write(b"\n")
            file.write(json.dumps(entry).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries[entry["case"]] = entry


@contextmanager
def open_ledger(folder: Path | str, *, job: str, overwrite: bool = False) -> Iterator[Ledger]:
    """Takes an output folder for this process alone.

    Arguments:
        folder: created if it is not there
        job: fingerprint of the settings
        overwrite: whether results of other settings may be replaced

    Raises:
        UsageError: another process works there, or it holds results of other settings
        DataError: the folder cannot be written
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / ".lock", "a+", encoding="utf-8")
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); choose another output folder."
        ) from None
    with lock:
        _lock(lock, folder)
        for leftover in folder.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)
        entries = read_entries(folder)
        other = [e for e in entries.values() if e["job"] != job and e["status"] == "done"]
        if other and not overwrite:
            raise UsageError(
                f"{folder}: holds results of other settings ({len(other)} cases, for example "
                f"{other[0]['case']}); choose another output folder, or overwrite them."
            )
        yield Ledger(folder, job, entries)


def _lock(file: Any, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise UsageError(
            f"{folder}: another process works here ({holder}); wait for it, or choose another "
            "output folder."
        ) from None
    file.truncate(0)
    file.write(f"host {socket.gethostname()}, pid {os.getpid()}")
    file.flush()


def read_entries(folder: Path) -> dict[str, dict[str, Any]]:
    """The newest line of each case; lines that are cut or no entries are left out."""
    path = folder / NAME
    entries: dict[str, dict[str, Any]] = {}
    if not path.is_file():
        return entries
    for line in path.read_bytes().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"case", "job", "status"} <= set(entry):
            entries[str(entry["case"])] = entry
    return entries
