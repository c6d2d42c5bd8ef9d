"""`volumediff check`: read every volume of a data set and list what is wrong."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.functions import check as look
from volumediff.commands._options import (
    Channels,
    Json,
    LayoutOption,
    defaults,
    names_of,
    print_json,
    spec_of,
)

__all__ = ["check"]

WORK = defaults(look)


def check(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="DATA", help="Data sets: folders, datalists or tables of cases; and volumes."
        ),
    ],
    layout: LayoutOption = WORK["layout"],
    channels: Channels = WORK["channels"],
    as_json: Json = False,
) -> None:
    """Read every volume of a data set and list what is wrong or noteworthy."""
    from volumediff.commands._tables import findings
    from volumediff.data.check import has_errors

    rows = look(data, layout=spec_of(layout), channels=names_of(channels))
    if as_json:
        print_json([vars(row) for row in rows])
    else:
        findings(rows)
    if has_errors(rows):
        raise typer.Exit(1)
