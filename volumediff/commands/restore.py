"""`volumediff restore`."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import OutFolder, Overwrite, finish

__all__ = ["restore"]


def restore(
    maps: Annotated[Path, typer.Argument(help="Folder of maps of prepared volumes.")],
    prepared: Annotated[Path, typer.Option("--prepared", help="Folder that prepare wrote.")],
    out: OutFolder,
    channel: Annotated[
        str | None, typer.Option("--channel", help="Image whose grid is wanted, if not the first.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Bring maps and masks of prepared volumes back to the grids of the original images.

    volumediff restore out/ --prepared aligned/ -o native/
    """
    from volumediff.alignment.restore import restore as work

    finish(work(maps, prepared, out, channel=channel, overwrite=overwrite))
