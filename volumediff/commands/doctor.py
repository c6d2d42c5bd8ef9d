"""`volumediff doctor`."""

from typing import Annotated

import typer

from volumediff.commands._options import ConfigWords, Json, print_json

__all__ = ["doctor"]


def doctor(
    config: Annotated[
        str | None, typer.Argument(help="Configuration to look at too: a YAML file, or a name.")
    ] = None,
    overrides: ConfigWords = None,
    as_json: Json = False,
) -> None:
    """Say what this machine can run, and what would go wrong."""
    from volumediff.commands._doctor import diagnose
    from volumediff.commands._tables import checks

    found = diagnose(config, overrides or [])
    if as_json:
        print_json([vars(line) for line in found])
    else:
        checks(found)
