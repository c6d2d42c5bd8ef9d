"""The command line: one command per task of the user, one line per error.

Exit codes: 0 done, 1 bad data or failed cases, 2 wrong usage or configuration, 130 Ctrl-C. An
error of the program itself shows its traceback, then its line; `--debug` shows that of every
error, and stops at the first case that fails so. Heavy packages load inside the commands, so that
`--help` answers at once.
"""

import errno
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Annotated, Never

import typer

from volumediff import __version__
from volumediff.commands._options import out_line
from volumediff.commands.calibrate import calibrate
from volumediff.commands.check import check
from volumediff.commands.demo import demo
from volumediff.commands.docs import docs
from volumediff.commands.doctor import doctor
from volumediff.commands.evaluate import evaluate
from volumediff.commands.export import export
from volumediff.commands.findings import findings
from volumediff.commands.import_run import import_
from volumediff.commands.info import info
from volumediff.commands.localize import localize
from volumediff.commands.plan import plan
from volumediff.commands.prepare import prepare
from volumediff.commands.profile import profile
from volumediff.commands.pull import pull
from volumediff.commands.push import push
from volumediff.commands.restore import restore
from volumediff.commands.sample import sample
from volumediff.commands.segment import segment
from volumediff.commands.train import train
from volumediff.commands.translate import translate
from volumediff.commands.tune import tune
from volumediff.distributed.launch import started
from volumediff.errors import (
    LIBRARIES,
    DataError,
    UsageError,
    isolated_cases,
    one_line,
    printable,
    traceback_of,
)

__all__ = ["app", "main"]

FULL = (errno.ENOSPC, errno.EDQUOT)
DEBUG = "--debug"
INTERRUPTED = 130  # what typer makes of Ctrl-C, as shells do
# typer carries its own copy of click, or takes the installed one, depending on the version
WRONG_WORDS = typer.BadParameter.__mro__[1]

app = typer.Typer(
    name="volumediff",
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="3D diffusion for medical volumes: train, localize anomalies, segment, evaluate.\n\n"
    "Research software, not for diagnosis.",
)


def main(given: Sequence[str] | None = None) -> None:
    """Runs a command; errors that a user can cause become one line and an exit code.

    Arguments:
        given: words of the command line; None takes those of the process
    """
    words, debug = _without_debug(list(sys.argv[1:] if given is None else given))
    try:
        with nullcontext() if debug else isolated_cases():
            code = app(words or ["--help"], prog_name="volumediff", standalone_mode=False)
    except Exception as error:  # noqa: BLE001 - nothing is lost: what is unexpected is shown whole
        line, code, expected = _told(error)
        if debug or not expected:
            sys.stderr.write(printable(traceback_of(error)))
        _stop(line, code)
    if code == INTERRUPTED:
        _stop(
            "interrupted; run the same command again to continue from what is finished.",
            INTERRUPTED,
        )
    _end(code or 0)


def _without_debug(words: list[str]) -> tuple[list[str], bool]:
    """The words without --debug, which may stand anywhere before a `--`."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != DEBUG]
    return [*kept, *words[end:]], len(kept) < end


def _told(error: Exception) -> tuple[str, int, bool]:
    """Line and exit code of an error, and whether the line says all that a user needs."""
    if isinstance(error, WRONG_WORDS):
        place = error.ctx.command_path if error.ctx else "volumediff"
        return f"{error.format_message().rstrip(chr(46))}. See {place} --help.", 2, True
    if isinstance(error, UsageError | DataError):
        return str(error), 2 if isinstance(error, UsageError) else 1, True
    if isinstance(error, ModuleNotFoundError) and error.name in LIBRARIES:
        text = f"the package {error.name} is not installed"
        return f"{text}; install volumediff again, without --no-deps.", 1, True
    if isinstance(error, OSError):
        full = "; free some space, or write elsewhere." if error.errno in FULL else ""
        return f"{error.filename or 'file system'}: {error.strerror or error}{full}", 1, True
    if isinstance(error, MemoryError | RuntimeError):
        from volumediff.planning.shortage import is_shortage

        if is_shortage(error):
            return "out of memory; see what fits: volumediff plan CONFIG --vram GB.", 1, True
    return one_line(error), 1, False


def _stop(message: str, code: int) -> Never:
    sys.stderr.write(f"volumediff: error: {printable(' '.join(message.split()))}\n")
    _end(code)


def _end(code: int) -> Never:
    """Ends the program; of a launch, without the last words of its process group."""
    if started() > 1:
        from volumediff.distributed.processes import leave

        leave(code)
    raise SystemExit(code)


def _version(wanted: bool | None) -> None:
    if wanted:
        out_line(f"volumediff {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool | None,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = None,
    debug: Annotated[
        bool,
        typer.Option(
            DEBUG,
            help="Show the traceback of an error, and stop at the first case that fails by a "
            "bug in the program or in a component. The option may stand anywhere.",
        ),
    ] = False,
) -> None:
    """Options of the program itself."""
    del version, debug  # the callback of the one has printed it, `main` has taken the other


# in the order in which --help lists them
for _name, _command in {
    "train": train,
    "import": import_,
    "plan": plan,
    "profile": profile,
    "check": check,
    "prepare": prepare,
    "localize": localize,
    "findings": findings,
    "calibrate": calibrate,
    "tune": tune,
    "segment": segment,
    "translate": translate,
    "restore": restore,
    "sample": sample,
    "export": export,
    "push": push,
    "pull": pull,
    "evaluate": evaluate,
    "demo": demo,
    "info": info,
    "doctor": doctor,
    "docs": docs,
}.items():
    app.command(_name)(_command)
