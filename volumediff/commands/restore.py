"""`volumediff restore`: bring results on prepared volumes back to the original grids."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.alignment import restore as work
from volumediff.commands._options import OutFolder, Overwrite, defaults, finish
from volumediff.commands._written import WrittenFiles

__all__ = ["restore"]

WORK = defaults(work)


def restore(
    maps: Annotated[
        list[Path],
        typer.Argument(metavar="OUT", help="Folders of results for prepared volumes."),
    ],
    prepared: Annotated[Path, typer.Option("--prepared", help="Folder that prepare wrote.")],
    output: OutFolder,
    channel: Annotated[
        str | None,
        typer.Option(
            "--channel",
            help="Channel on whose grid the outputs are written; the first one by default.",
        ),
    ] = WORK["channel"],
    overwrite: Overwrite = WORK["overwrite"],
) -> None:
    """Bring maps and masks of prepared volumes back to the grids of the original images.

    volumediff restore out/ --prepared aligned/ -o native/
    """
    written = WrittenFiles(output)
    summary = work(maps, output, prepared=prepared, channel=channel, overwrite=overwrite)
    written.finish(then=f"volumediff evaluate {output} --truth DATA --report")
    finish(summary)
