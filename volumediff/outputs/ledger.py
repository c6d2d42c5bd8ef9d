"""The ledger of an output folder: which cases are finished, proved by SHA-256.

OUT/ledger.jsonl has one line per attempt. A case counts as finished when its newest line says so,
for the same settings and the same input bytes, and every output still has the bytes written. The
line is appended after all files of the case are in place, so that a killed run leaves either a
finished case or one that is done again. Lines end with their own SHA-256; of a line that a killed
run has cut, which has no end, the start is removed.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from volumediff.errors import DataError, UsageError
from volumediff.storage.digests import sha256, sha256_of_file
from volumediff.storage.records import Record, parse
from volumediff.storage.seal import Broken, open_json, seal_json

__all__ = ["Ledger", "fingerprint", "open_ledger", "read_entries"]

NAME = "ledger.jsonl"


class Output(Record):
    """What a file was when it was written."""

    bytes: int
    sha256: str


class LedgerEntry(Record):
    """What every line says; facts such as the score beside it are its writer's own."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    case: str
    job: str
    time: str
    seconds: float | None = None
    network_calls: float | None = None
    peak_gb: float | None = None


class Done(LedgerEntry):
    """A finished case."""

    status: Literal["done"]
    inputs: dict[str, str]
    outputs: dict[str, Output]


class Failed(LedgerEntry):
    """A case that could not be done."""

    status: Literal["failed"]
    error: str


Line = Annotated[Done | Failed, Field(discriminator="status")]


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings, whatever the order of their keys."""
    return sha256(json.dumps(settings, sort_keys=True))


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
    entries: dict[str, Done | Failed] = field(default_factory=dict)

    def finished(self, case: str, inputs: Mapping[str, str]) -> bool:
        """Whether the outputs of a case are there, unchanged, and made from these inputs."""
        entry = self.entries.get(case)
        if not isinstance(entry, Done) or entry.job != self.job or entry.inputs != dict(inputs):
            return False
        for name, wanted in entry.outputs.items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != wanted.bytes:
                return False
            if sha256_of_file(path) != wanted.sha256:
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
                "sha256": sha256_of_file(path),
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
        line = seal_json(entry, line=True)
        try:
            with open(path, "ab") as file:
                file.truncate(_whole(path.read_bytes()))
                file.write(line + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror}); what was finished is kept; run "
                "the command again."
            ) from None
        self.entries[entry["case"]] = _parsed(line, path, 0)


@contextmanager
def open_ledger(folder: Path | str, *, job: str, overwrite: bool = False) -> Iterator[Ledger]:
    """Takes an output folder for this process alone.

    Arguments:
        folder: created if it is not there
        job: fingerprint of the settings
        overwrite: whether results of other settings may be replaced

    Raises:
        UsageError: another process works there, or it holds results of other settings
        DataError: the folder cannot be written, or its ledger is damaged
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
        other = [e for e in entries.values() if e.job != job and isinstance(e, Done)]
        if other and not overwrite:
            raise UsageError(
                f"{folder}: holds results of other settings ({len(other)} cases, for example "
                f"{other[0].case}); choose another output folder, or overwrite them."
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


def read_entries(folder: Path) -> dict[str, Done | Failed]:
    """The newest line of each case; a last line that was cut is left out.

    Raises:
        DataError: a line is damaged; names it
    """
    path = folder / NAME
    entries: dict[str, Done | Failed] = {}
    if not path.is_file():
        return entries
    content = path.read_bytes()
    for number, line in enumerate(content[: _whole(content)].split(b"\n")[:-1], start=1):
        entry = _parsed(line, path, number)
        entries[entry.case] = entry
    return entries


def _whole(content: bytes) -> int:
    """Length of the lines that have an end."""
    return content.rfind(b"\n") + 1


def _parsed(line: bytes, path: Path, number: int) -> Done | Failed:
    where, advice = f"{path}: line {number}", "remove the line: its case is done again"
    try:
        return parse(open_json(line), Line, where=where, advice=advice)
    except Broken as error:
        raise DataError(f"{where}: damaged or edited: {error}; {advice}.") from None
