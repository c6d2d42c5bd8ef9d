"""The command line: one command per thing that users do, one line per error.

Exit codes: 0 done, 1 bad data or failed cases, 2 wrong usage or configuration, 130 Ctrl-C. Heavy
packages load inside the commands, so that `--help` answers at once.
"""

import errno
import sys
from typing import Annotated, Never

import typer

from volumediff import __version__
from volumediff.commands._options import out_line
from volumediff.commands.calibrate import calibrate
from volumediff.commands.check import check
from volumediff.commands.demo import demo
from volumediff.commands.doctor import doctor
from volumediff.commands.evaluate import evaluate
from volumediff.commands.findings import findings
from volumediff.commands.import_run import import_
from volumediff.commands.info import info
from volumediff.commands.localize import localize
from volumediff.commands.plan import plan
from volumediff.commands.prepare import prepare
from volumediff.commands.profile import profile
from volumediff.commands.restore import restore
from volumediff.commands.sample import sample
from volumediff.commands.segment import segment
from volumediff.commands.train import train
from volumediff.commands.tune import tune
from volumediff.errors import DataError, UsageError

__all__ = ["app", "main"]

FULL = (errno.ENOSPC, errno.EDQUOT)
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


def main() -> None:
    """Runs a command; errors that a user can cause become one line and an exit code."""
    words = sys.argv[1:] or ["--help"]
    try:
        code = app(words, prog_name="volumediff", standalone_mode=False)
    except WRONG_WORDS as error:
        place = error.ctx.command_path if error.ctx else "volumediff"
        _stop(f"{error.format_message().rstrip(chr(46))}. See {place} --help.", 2)
    except UsageError as error:
        _stop(str(error), 2)
    except DataError as error:
        _stop(str(error), 1)
    except (MemoryError, RuntimeError) as error:
        from volumediff.planning.shortage import is_shortage

        if not is_shortage(error):
            raise
        _stop("out of memory; see what fits: volumediff plan CONFIG --vram GB.", 1)
    except OSError as error:
        full = "; free some space, or write elsewhere." if error.errno in FULL else ""
        _stop(f"{error.filename or 'file system'}: {error.strerror or error}{full}", 1)
    if code == INTERRUPTED:
        _stop("interrupted; the same command goes on from what is finished.", INTERRUPTED)
    raise SystemExit(code or 0)


def _stop(message: str, code: int) -> Never:
    sys.stderr.write(f"volumediff: error: {' '.join(message.split())}\n")
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
) -> None:
    """Options of the program itself."""
    del version  # its callback has printed it


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
    "restore": restore,
    "sample": sample,
    "evaluate": evaluate,
    "demo": demo,
    "info": info,
    "doctor": doctor,
}.items():
    app.command(_name)(_command)
