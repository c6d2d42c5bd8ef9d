"""Many cases, one after the other: finished ones are skipped, a bad one does not stop the others.

Several processes share them: those of a launch, tasks of a job array, or one command given twice.
All end when every case is settled, with the same summary.

Every case has its own inputs, outputs and ledger line, so that the command can be killed at any
moment and given again. What a user can mend is one line. An error of the program, or of a
component, is raised; inside `isolated_cases` its traceback goes to OUT/errors/<case>.txt, and the
other cases go on.
"""

import errno
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

import volumediff
from volumediff.data.cases import Case
from volumediff.data.files import digests
from volumediff.distributed.launch import is_main, meet, world
from volumediff.errors import (
    DataError,
    UsageError,
    isolating_cases,
    one_line,
    traceback_of,
)
from volumediff.outputs.bids_dataset import describe_dataset
from volumediff.outputs.ledger import Failed, Ledger, fingerprint, open_ledger
from volumediff.planning.shortage import is_shortage
from volumediff.storage.atomic import atomic
from volumediff.system.file_names import unfit_name
from volumediff.terminal.messages import detail, problem
from volumediff.terminal.progress import Progress

__all__ = ["Result", "Summary", "process"]

Report = Callable[[str], None]
ERRORS = "errors"  # folder of tracebacks, in the output folder
# Of the disk, not of a case: they end the run.
DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


@dataclass(frozen=True)
class Result:
    """What was written for one case.

    Arguments:
        files: outputs, in the output folder
        facts: numbers for the ledger, such as the score
        warnings: what is to be known about the case, in sentences
    """

    files: list[Path]
    facts: Mapping[str, Any]
    warnings: Sequence[str] = ()


@dataclass(frozen=True)
class Summary:
    """How a batch ended.

    Arguments:
        done: cases that were worked on
        skipped: cases that were finished before
        failed: case -> reason
        folder: where the outputs are
        last: whether this process is the one that finishes what all have done: the main one of a
            launch, or else the last to leave
    """

    done: list[str]
    skipped: list[str]
    failed: dict[str, str]
    folder: Path
    last: bool = True

    def line(self) -> str:
        """One line for the user."""
        text = f"{self.folder}: {len(self.done)} done"
        if self.skipped:
            text += f", {len(self.skipped)} already finished and verified"
        return text + (f", {len(self.failed)} failed" if self.failed else "")


def process(
    cases: Sequence[Case],
    out: Path | str,
    *,
    settings: Mapping[str, Any],
    work: Callable[[Case, Mapping[str, str], Path], Result],
    also: Mapping[str, Mapping[str, Path]] = MappingProxyType({}),
    problems: Mapping[str, str] = MappingProxyType({}),
    overwrite: bool = False,
    report: Report | None = None,
) -> Summary:
    """Works on cases that the ledger of the output folder does not have as finished.

    Arguments:
        cases: with unique ids
        out: output folder
        settings: everything beside the inputs that shapes the outputs, as JSON
        work: (case, SHA-256 of its files, folder) -> what it wrote
        also: case -> further input files by name, which count like its images
        problems: case -> reason, for cases that could not even be read
        overwrite: whether results of other settings may be replaced
        report: receives a line per case; None shows progress on the terminal

    Raises:
        UsageError: a process with other settings works in the output folder, or it holds results
            of other settings
        DataError: the disk is full or not writable, or cannot hold files named as the cases are
        Exception: an error of the program or of a component, outside of `isolated_cases`
    """
    out = Path(out)
    settled: dict[str, str | bool] = {}
    with (
        open_ledger(out, job=fingerprint(settings), overwrite=overwrite) as ledger,
        _progress(len(cases) + len(problems), report) as say,
    ):
        unfit = unfit_name(out, [case.id for case in cases])
        if unfit is not None:
            raise DataError(f"{out}: {unfit}; give the case another name, or work elsewhere.")
        if is_main():
            describe_dataset(out, cases, settings)
        meet()  # a process that starts late joins what this session has done, too
        for name, reason in problems.items() if is_main() else ():
            say(f"{name}: failed: {reason}")
        others = [
            case
            for case in cases
            if not _attempt(case, ledger, work, settled, say, also.get(case.id, {}))
        ]
        for case in others:
            _attempt(case, ledger, work, settled, say, also.get(case.id, {}), wait=True)
    names = [case.id for case in cases]
    return Summary(
        done=[name for name in names if settled[name] is True],
        skipped=[name for name in names if settled[name] is False],
        failed={
            **problems,
            **{n: reason for n in names if isinstance(reason := settled[n], str)},
        },
        folder=out,
        last=is_main() if world() > 1 else ledger.last,
    )


def _attempt(
    case: Case,
    ledger: Ledger,
    work: Callable[[Case, Mapping[str, str], Path], Result],
    settled: dict[str, str | bool],
    say: Report,
    also: Mapping[str, Path],
    *,
    wait: bool = False,
) -> bool:
    """Settles a case: True where it is done now, False where it was before, else the reason.

    Returns:
        whether it is settled; not if another process works on it, unless this one waits
    """
    with ledger.claimed(case.id, wait=wait) as mine:
        if not mine:
            return False
        entry = ledger.settled.get(case.id)
        if entry is None:
            settled[case.id] = _work_on(case, ledger, work, say, also)
        else:
            settled[case.id] = entry.error if isinstance(entry, Failed) else True
            if isinstance(entry, Failed):
                say(f"{case.id}: failed: {entry.error}")
            else:
                say(f"{case.id}: done by another process")
    return True


def _work_on(
    case: Case,
    ledger: Ledger,
    work: Callable[[Case, Mapping[str, str], Path], Result],
    say: Report,
    also: Mapping[str, Path],
) -> str | bool:
    start = time.monotonic()
    try:
        inputs = digests(case, also=also)
        if ledger.finished(case.id, inputs):
            say(f"{case.id}: finished before, verified")
            return False
        _forget(ledger.folder, case.id)
        result = work(case, inputs, ledger.folder)
    except Exception as error:
        if isinstance(error, OSError) and _of_the_disk(error, ledger.folder):
            raise DataError(
                f"{error.filename or ledger.folder}: cannot be written ({error.strerror}); what "
                "was finished is kept; run the command again."
            ) from error
        if not (isolating_cases() or _of_the_user(error)):
            raise
        reason = _reason(error, case.id, ledger.folder)
        ledger.failed(case.id, reason)
        say(f"{case.id}: failed: {reason}")
        return reason
    seconds = time.monotonic() - start
    facts = {"seconds": round(seconds, 3), **result.facts}
    ledger.done(case.id, inputs=inputs, outputs=result.files, facts=facts)
    score = result.facts.get("score")
    shown = "" if score is None else f", score {score:.4g}"
    for warning in result.warnings:
        say(f"{case.id}: warning: {warning}")
    say(f"{case.id}: done in {seconds:.1f} s{shown}")
    return True


def _of_the_user(error: Exception) -> bool:
    """Whether a line says all: what was given is wrong, or too large."""
    return isinstance(error, DataError | UsageError) or is_shortage(error)


def _reason(error: Exception, case: str, folder: Path) -> str:
    """Why a case failed, in one line; the traceback of an error of the program in a file."""
    if is_shortage(error):
        return "not enough memory; choose a coarser data.preprocessing.spacing_mm"
    if _of_the_user(error):
        return " ".join(str(error).split()).removeprefix(f"{case}: ")  # whoever reads has the name
    path = folder / ERRORS / f"{case}.txt"
    versions = f"volumediff {volumediff.__version__}, torch {torch.__version__}"
    head = f"{case}, {versions}, Python {platform.python_version()}"
    try:
        path.parent.mkdir(exist_ok=True)
        with atomic(path) as file:
            file.write(f"{head}\n\n{traceback_of(error)}".encode())
    except OSError as full:
        raise DataError(f"{path}: cannot be written ({full.strerror}).") from error
    return f"{one_line(error)} (traceback in {path})"


def _of_the_disk(error: OSError, folder: Path) -> bool:
    """Whether the other cases would fail alike: a full disk, or an output that cannot be."""
    name = error.filename
    inside = isinstance(name, str | Path) and Path(name).is_relative_to(folder)
    return error.errno in DISK or inside


def _forget(folder: Path, case: str) -> None:
    """Takes away the traceback of an earlier attempt, and the folder with the last one."""
    path = folder / ERRORS / f"{case}.txt"
    if path.is_file():
        path.unlink()
        if not any(path.parent.iterdir()):
            path.parent.rmdir()


@contextmanager
def _progress(total: int, report: Report | None) -> Iterator[Report]:
    """Lines to `report`, else a bar on a terminal and a line now and then elsewhere."""
    if report is not None:
        yield report
        return
    with Progress(total, "cases", active=is_main()) as bar:

        def advance(line: str) -> None:
            case, warned, text = line.partition(": warning: ")
            if warned:
                problem(f"volumediff: {case}: {text}")
                return
            case, failed, reason = line.partition(": failed: ")
            if failed:
                problem(f"volumediff: {case}: {reason}")
            else:
                detail(line)
            bar.update(bar.done + 1, "" if failed else line)

        yield advance
