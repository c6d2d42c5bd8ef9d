"""`volumediff import`."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import Words, say

__all__ = ["import_"]


def import_(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="wdm, patchddm, ...")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Checkpoint of the other tool.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the new run.")],
    overrides: Words = None,
    weights_only_pickle: Annotated[
        bool,
        typer.Option("--weights-only-pickle", help="Read a .pt file, but tensors alone."),
    ] = False,
) -> None:
    """Make a run of a checkpoint of another tool; `info` lists the kinds.

    volumediff import wdm brats_unet_128_1200k.pt -o runs/wdm --weights-only-pickle
    """
    from volumediff.training.imported import import_run

    run = import_run(
        kind, file, out, overrides=overrides or [], weights_only_pickle=weights_only_pickle
    )
    say(f"{run}: imported.")
