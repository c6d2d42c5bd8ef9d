"""`volumediff doctor`: what this machine can run."""

from typing import Annotated

import typer

from volumediff.commands import _completion
from volumediff.commands._options import ConfigWords, Json, print_json

__all__ = ["doctor"]


def doctor(
    config: Annotated[
        str | None,
        typer.Argument(
            help="Configuration to check too: a YAML file, or the name of a shipped one.",
            autocompletion=_completion.configs,
        ),
    ] = None,
    overrides: ConfigWords = None,
    as_json: Json = False,
) -> None:
    """Report what this machine can run, and which problems to expect."""
    from volumediff.commands._doctor import diagnose
    from volumediff.commands._tables import checks

    found = diagnose(config, overrides or [])
    if as_json:
        print_json([vars(line) for line in found])
    else:
        checks(found)
