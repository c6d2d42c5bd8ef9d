"""`volumediff check`."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import Channels, Json, names_of, print_json
from volumediff.errors import UsageError

__all__ = ["check"]


def check(
    data: Annotated[Path, typer.Argument(help="Data set: folder, nnU-Net raw, BIDS, datalist.")],
    layout: Annotated[
        str, typer.Option("--layout", help="auto, folder, nnunet, bids or datalist.")
    ] = "auto",
    channels: Channels = None,
    as_json: Json = False,
) -> None:
    """Read every volume of a data set and list what is wrong or noteworthy."""
    from volumediff.data.check import check as look
    from volumediff.data.check import has_errors
    from volumediff.inference.tables import findings

    known = ("auto", "folder", "nnunet", "bids", "datalist")
    if layout not in known:
        raise UsageError(f"--layout {layout}: choose from {', '.join(known)}.")
    rows = look(data, layout=layout, channels=names_of(channels))
    if as_json:
        print_json([vars(row) for row in rows])
    else:
        findings(rows)
    if has_errors(rows):
        raise typer.Exit(1)
