"""What commands say about files below their inputs that are in no case."""

import os
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volumediff.commands._options import DATA_PANEL, say
from volumediff.errors import DataError, UsageError

if TYPE_CHECKING:
    from volumediff.data.survey import Spec

__all__ = ["Strict", "account_for", "accounts"]

Command = Callable[..., None]

Strict = Annotated[
    bool,
    typer.Option(
        "--strict",
        help="Refuse data with files that look like data and are in no case.",
        rich_help_panel=DATA_PANEL,
    ),
]


def accounts(command: Command) -> Command:
    """A command that accounts for its inputs and then works on them: both survey them once."""

    @wraps(command)
    def once(*arguments: Any, **named: Any) -> None:
        from volumediff.data.survey import surveyed_once

        with surveyed_once():
            command(*arguments, **named)

    return once


def account_for(
    sources: Sequence[Path | str],
    *,
    layout: "Spec",
    channels: Sequence[str] | None,
    strict: bool,
) -> None:
    """Says how many files below the sources are in no case, and refuses them if that is asked for.

    What cannot be read at all is left to the command itself, which says why.

    Raises:
        UsageError: strict, and a file is in no case
    """
    from volumediff.data.account import left_out, refuse_left_out
    from volumediff.data.survey import survey_cases

    for source in map(Path, sources):
        try:
            _, problems = survey_cases(source, layout, channels)
        except (DataError, UsageError):
            continue
        if strict:
            refuse_left_out(problems)
        line = left_out(problems, source)
        if line is not None and os.environ.get("RANK", "0") == "0":
            say(line)
