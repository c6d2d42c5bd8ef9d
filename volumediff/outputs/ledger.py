"""The ledger of an output folder: which cases are finished, proved by SHA-256.

Any number of processes may work on one folder with the same settings: they share its cases. Each
takes a case (`Ledger.claimed`), looks whether another has settled it since, and appends its line
before it gives the case back. The kernel gives back what a killed process had, and another one
takes it. A session lasts from the first process that comes to the last one that leaves.

    OUT/.lock      held for a moment, by who comes and who leaves
    OUT/.session   held by all who are there; says with which settings, and where the ledger ended
    OUT/.claims/   a file for every case, held by who works on it; gone after the session

OUT/ledger.jsonl has one line per attempt. A case counts as finished when its newest line says so,
for the same settings and the same input bytes, and every output still has the bytes written. The
line is appended after all files of the case are in place, so that a killed run leaves either a
finished case or one that is done again. Lines end with their own SHA-256; of a line that a killed
run has cut, which has no end, the start is removed.
"""

import json
import os
import shutil
import time
from collections.abc import Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal

from pydantic import ConfigDict, Field

from volumediff.errors import DataError, UsageError
from volumediff.outputs.case_files import written
from volumediff.storage.digests import sha256, sha256_of_file
from volumediff.storage.locks import holder, open_itself, sign, take
from volumediff.storage.records import Record, parse
from volumediff.storage.seal import Broken, open_json, seal_json
from volumediff.system.folders import remove_open

__all__ = [
    "Failed",
    "Ledger",
    "changed_outputs",
    "fingerprint",
    "open_ledger",
    "read_entries",
]

NAME = "ledger.jsonl"
TAIL = 1 << 16  # bytes at the end of a ledger that hold more than a line
SESSION, CLAIMS = ".session", ".claims"


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


class Session(Record):
    """Of OUT/.session: what the processes have in common that work there now."""

    job: str
    begin: int
    holder: str


Line = Annotated[Done | Failed, Field(discriminator="status")]


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 of settings, whatever the order of their keys."""
    return sha256(json.dumps(settings, sort_keys=True))


@dataclass
class Ledger:
    """The ledger of a folder, for one of those who work on it.

    Arguments:
        folder: where the outputs go
        job: fingerprint of all settings that shape the outputs
        begin: its length when the session began
        entries: newest line of each case
        settled: those of this session
        last: after the block of `open_ledger`, whether everybody else had left before
    """

    folder: Path
    job: str
    begin: int = 0
    entries: dict[str, Done | Failed] = field(default_factory=dict)
    settled: dict[str, Done | Failed] = field(default_factory=dict)
    last: bool = False
    _read: int = 0
    _lines: int = 0

    def finished(self, case: str, inputs: Mapping[str, str]) -> bool:
        """Whether the outputs of a case are there, unchanged, and made from these inputs."""
        entry = self.entries.get(case)
        if not isinstance(entry, Done) or entry.job != self.job or entry.inputs != dict(inputs):
            return False
        return all(_unchanged(self.folder / n, wanted) for n, wanted in entry.outputs.items())

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
        line = seal_json(entry, line=True) + b"\n"
        try:
            with open_itself(path) as file:
                take(file)
                end = _end_of(file)
                file.truncate(end)  # what a killed process cut short is taken back
                file.seek(end)
                while line:
                    line = line[file.write(line) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror}); what was finished is kept; run "
                "the command again."
            ) from None

    def refresh(self) -> None:
        """Reads what other processes have appended.

        Raises:
            DataError: a line is damaged; names it
        """
        path = self.folder / NAME
        if not path.is_file():
            return
        with open_itself(path) as file:
            take(file, shared=True)
            file.seek(self._read)
            content = file.read()
        for line in content[: _whole(content)].split(b"\n")[:-1]:
            entry = _parsed(line, path, self._lines + 1)
            self.entries[entry.case] = entry
            if self._read >= self.begin and entry.job == self.job:
                self.settled[entry.case] = entry
            self._read += len(line) + 1
            self._lines += 1

    @contextmanager
    def claimed(self, case: str, *, wait: bool) -> Iterator[bool]:
        """Holds a case inside the block, with all that is known of it by then.

        Arguments:
            wait: for the process that has it; otherwise False is given at once
        """
        folder = self.folder / CLAIMS
        if folder.is_symlink():
            raise DataError(f"{folder}: is a symbolic link, which is not followed here.")
        try:
            folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be written ({error.strerror}).") from None
        with open_itself(folder / case) as file:
            mine = take(file, wait=wait)
            if mine:
                self.refresh()
            yield mine


@contextmanager
def open_ledger(folder: Path | str, *, job: str, overwrite: bool = False) -> Iterator[Ledger]:
    """Joins those who work on an output folder with the same settings, or begins.

    Arguments:
        folder: created if it is not there
        job: fingerprint of the settings
        overwrite: whether results of other settings may be replaced

    Raises:
        UsageError: a process with other settings works there, or it holds results of others
        DataError: the folder cannot be written or locked, or its ledger is damaged
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); choose another output folder."
        ) from None
    with ExitStack() as stack:
        with _gate(folder):
            present = stack.enter_context(open_itself(folder / SESSION))
            session = _join(folder, present, job)
        ledger = Ledger(folder, job, session.begin)
        stack.callback(_leave, ledger, present)
        ledger.refresh()
        other = [e for e in ledger.entries.values() if e.job != job and isinstance(e, Done)]
        if other and not overwrite:
            raise UsageError(
                f"{folder}: holds results of other settings ({len(other)} cases, for example "
                f"{other[0].case}); choose another output folder, or overwrite them."
            )
        yield ledger


@contextmanager
def _gate(folder: Path) -> Iterator[None]:
    """One process at a time comes or leaves."""
    with open_itself(folder / ".lock") as file:
        take(file)
        yield


def _join(folder: Path, present: BinaryIO, job: str) -> Session:
    """Begins the session, if nobody is there, or joins those who have the same settings."""
    if take(present, wait=False):
        for leftover in written(folder, ".*.tmp"):
            leftover.unlink(missing_ok=True)
        path = folder / NAME
        begin = _whole(path.read_bytes()) if path.is_file() else 0
        session = Session(job=job, begin=begin, holder=holder())
        sign(present, session.model_dump_json())
    else:
        advice = "wait for the process that works there"
        session = parse(present.read(), Session, where=folder / SESSION, advice=advice)
        if session.job != job:
            raise UsageError(
                f"{folder}: another process works here with other settings ({session.holder}); "
                "wait for it, or choose another output folder."
            )
    take(present, shared=True)
    return session


def _leave(ledger: Ledger, present: BinaryIO) -> None:
    """The last one takes away what only the session needs."""
    with _gate(ledger.folder):
        ledger.last = take(present, wait=False)
        if ledger.last:
            shutil.rmtree(ledger.folder / CLAIMS, ignore_errors=True)
            remove_open(ledger.folder / SESSION)


def changed_outputs(folder: Path, cases: Container[str]) -> list[str]:
    """Files of finished cases that are gone, or not as they were written.

    Arguments:
        folder: of results, with a ledger or without
        cases: whose files are looked at

    Raises:
        DataError: the ledger is damaged
    """
    return [
        name
        for case, entry in read_entries(folder).items()
        if case in cases and isinstance(entry, Done)
        for name, wanted in entry.outputs.items()
        if not _unchanged(folder / name, wanted)
    ]


def _unchanged(path: Path, wanted: Output) -> bool:
    there = path.is_file() and path.stat().st_size == wanted.bytes
    return there and sha256_of_file(path) == wanted.sha256


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


def _end_of(file: BinaryIO) -> int:
    """Length of the lines of a ledger that have an end."""
    size = file.seek(0, os.SEEK_END)
    start = max(size - TAIL, 0)
    file.seek(start)
    end = _whole(file.read())
    if end or not start:
        return start + end
    file.seek(0)
    return _whole(file.read())


def _whole(content: bytes) -> int:
    """Length of the lines that have an end."""
    return content.rfind(b"\n") + 1


def _parsed(line: bytes, path: Path, number: int) -> Done | Failed:
    where, advice = f"{path}: line {number}", "remove the line: its case is done again"
    try:
        return parse(open_json(line), Line, where=where, advice=advice)
    except Broken as error:
        raise DataError(f"{where}: damaged or edited: {error}; {advice}.") from None
