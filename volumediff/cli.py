"""The command line: one command per task of the user, one line per error.

Exit codes: 0 done, 1 bad data or failed cases, 2 wrong usage or configuration, 130 Ctrl-C. An
error of the program itself shows its traceback, then its line; `--debug` shows that of every
error, and stops at the first case that fails so. `-v`, `-q` and `--log-file` say what is shown and
where a copy goes. Heavy packages load inside the commands, so that `--help` answers at once.
"""

import errno
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Never

import typer

from volumediff import __version__
from volumediff.commands._options import out_line
from volumediff.commands.calibrate import calibrate
from volumediff.commands.check import check
from volumediff.commands.demo import demo
from volumediff.commands.docs import docs
from volumediff.commands.doctor import doctor
from volumediff.commands.draw import draw
from volumediff.commands.evaluate import evaluate
from volumediff.commands.export import export
from volumediff.commands.findings import findings
from volumediff.commands.import_run import import_
from volumediff.commands.info import info
from volumediff.commands.init import init
from volumediff.commands.localize import localize
from volumediff.commands.plan import plan
from volumediff.commands.prepare import prepare
from volumediff.commands.profile import profile
from volumediff.commands.pull import pull
from volumediff.commands.push import push
from volumediff.commands.restore import restore
from volumediff.commands.sample import sample
from volumediff.commands.schema import schema
from volumediff.commands.segment import segment
from volumediff.commands.train import train
from volumediff.commands.translate import translate
from volumediff.commands.tune import tune
from volumediff.distributed.launch import is_main, started
from volumediff.errors import (
    LIBRARIES,
    DataError,
    UsageError,
    isolated_cases,
    one_line,
    traceback_of,
)
from volumediff.terminal.messages import Verbosity, logging_session, problem

__all__ = ["app", "main"]

FULL = (errno.ENOSPC, errno.EDQUOT)
DEBUG, VERBOSE, QUIET = ("--debug",), ("-v", "--verbose"), ("-q", "--quiet")
LOG_FILE = "--log-file"
EVERYWHERE = "Every command also takes -v, -q, --log-file FILE and --debug; see volumediff --help."
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


@dataclass(frozen=True)
class _ProgramOptions:
    """Options that every command takes.

    Arguments:
        debug: whether every error shows its traceback
        level: of the least important message that is shown
        log_file: that everything is copied to
    """

    debug: bool = False
    level: Verbosity = Verbosity.NORMAL
    log_file: Path | None = None


def main(given: Sequence[str] | None = None) -> None:
    """Runs a command; errors that a user can cause become one line and an exit code.

    Arguments:
        given: words of the command line; None takes those of the process
    """
    try:
        words, chosen = _program_options(list(sys.argv[1:] if given is None else given))
        with logging_session(chosen.level, chosen.log_file if is_main() else None):
            code = _run(words, debug=chosen.debug)
    except UsageError as error:  # in these options
        code = _complain(str(error), 2)
    _end(code)


def _run(words: list[str], *, debug: bool) -> int:
    """Runs a command and returns its exit code."""
    try:
        with nullcontext() if debug else isolated_cases():
            code = app(words or ["--help"], prog_name="volumediff", standalone_mode=False)
    except Exception as error:  # noqa: BLE001 - nothing is lost: what is unexpected is shown whole
        line, code, expected = _told(error)
        if debug or not expected:
            problem(traceback_of(error).rstrip())
        return _complain(line, code)
    if code == INTERRUPTED:
        text = "interrupted; run the same command again to continue from what is finished."
        return _complain(text, INTERRUPTED)
    return code or 0


def _program_options(words: list[str]) -> tuple[list[str], _ProgramOptions]:
    """The words without the options of the program, which may stand anywhere before a `--`.

    Raises:
        UsageError: a log file without a name, or both -v and -q
    """
    end = words.index("--") if "--" in words else len(words)
    kept: list[str] = []
    found: dict[str, Any] = {}
    levels = set()
    given = iter(words[:end])
    for word in given:
        option, equals, value = word.partition("=")
        if word in DEBUG:
            found["debug"] = True
        elif word in (*VERBOSE, *QUIET):
            levels.add(Verbosity.VERBOSE if word in VERBOSE else Verbosity.QUIET)
        elif option == LOG_FILE:
            name = value if equals else next(given, "")
            if not name:
                raise UsageError(f"{LOG_FILE}: expected the name of a file.")
            found["log_file"] = Path(name)
        else:
            kept.append(word)
    if len(levels) > 1:
        raise UsageError("-v shows more and -q shows less; give one of them.")
    if levels:
        found["level"] = levels.pop()
    return [*kept, *words[end:]], _ProgramOptions(**found)


def _told(error: Exception) -> tuple[str, int, bool]:
    """Line and exit code of an error, and whether the line says all that a user needs."""
    if isinstance(error, WRONG_WORDS):
        place = error.ctx.command_path if error.ctx else "volumediff"
        said = error.format_message().rstrip(".")
        end = "" if said.endswith("?") else "."
        return f"{said}{end} See {place} --help.", 2, True
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


def _complain(message: str, code: int) -> int:
    problem(f"volumediff: error: {' '.join(message.split())}")
    return code


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
    verbose: Annotated[
        bool, typer.Option(*VERBOSE, help="Show details, such as a line for every case.")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            *QUIET, help="Show errors alone, and the results that are asked for with --json."
        ),
    ] = False,
    log_file: Annotated[
        Path | None,
        typer.Option(
            LOG_FILE, metavar="FILE", help="Add everything that is shown to this file, with times."
        ),
    ] = None,
    debug: Annotated[
        bool,
        typer.Option(
            *DEBUG,
            help="Show the traceback of an error, and stop at the first case that fails by a "
            "bug in the program or in a component.",
        ),
    ] = False,
) -> None:
    """Options of the program itself, which `main` has taken out, wherever they stood."""
    del version, verbose, quiet, log_file, debug


# in the order in which --help lists them
for _name, _command in {
    "init": init,
    "train": train,
    "import": import_,
    "plan": plan,
    "profile": profile,
    "check": check,
    "prepare": prepare,
    "draw": draw,
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
    "schema": schema,
    "doctor": doctor,
    "docs": docs,
}.items():
    app.command(_name, epilog=EVERYWHERE)(_command)
