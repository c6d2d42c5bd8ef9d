"""`volumediff plan`: memory of a configuration, without a GPU."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.training import plan as look
from volumediff.commands._options import (
    Config,
    ConfigWords,
    Json,
    ModeOption,
    Size,
    defaults,
    print_json,
)
from volumediff.commands._written import WrittenFiles
from volumediff.errors import UsageError

__all__ = ["plan"]

WORK = defaults(look)


def plan(
    config: Config,
    overrides: ConfigWords = None,
    vram: Annotated[float | None, typer.Option("--vram", help="Memory of the GPU in GB.")] = WORK[
        "vram_gb"
    ],
    shape: Size = WORK["shape"],
    mode: ModeOption = WORK["mode"],
    as_json: Json = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Write the configuration with the chosen memory policy to this file.",
        ),
    ] = None,
) -> None:
    """Predict memory without data or GPU, and choose the fastest memory policy that fits.

    volumediff plan wavelet_256 --vram 8 -o small.yaml
    """
    from volumediff.commands._tables import policies
    from volumediff.storage.atomic import write_text

    if output is not None and vram is None:
        raise UsageError(
            "-o writes the memory policy that fits a card; give its memory with --vram GB."
        )
    written = WrittenFiles(*([] if output is None else [output]))
    found = look(config, vram_gb=vram, shape=shape, mode=mode.value, overrides=overrides or [])
    if as_json:
        print_json({"config": config, **found.to_json()})
    else:
        policies(found)
    if found.fits is False:
        raise typer.Exit(1)
    if output is not None:
        write_text(
            output, found.config.to_yaml(f"{config} with the memory policy for {vram:g} GB.")
        )
        root = "" if found.config.data.root else " data.root=DATA"
        written.finish(then=f"volumediff train {output}{root}")
