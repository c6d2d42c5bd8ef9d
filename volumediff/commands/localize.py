"""`volumediff localize`."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import (
    Channels,
    DataRoot,
    Device,
    Memory,
    OutFolder,
    Overwrite,
    Run,
    Seed,
    Source,
    Which,
    WhichOption,
    Words,
    finish,
    names_of,
    say,
    trained_run,
)

__all__ = ["localize"]


def localize(
    run: Run,
    source: Source,
    out: OutFolder,
    overrides: Words = None,
    method: Annotated[str, typer.Option("--method", help="Row by name or YAML file.")] = "scan",
    which: WhichOption = Which.best,
    channels: Channels = None,
    device: Device = "auto",
    memory: Memory = None,
    seed: Seed = 0,
    data: DataRoot = None,
    trace: Annotated[bool, typer.Option(help="Write masks and maps of the blocks too.")] = True,
    region: Annotated[
        Path | None,
        typer.Option(
            "--region",
            metavar="MASK",
            help="What to redraw, on any grid: a mask, or a folder of masks by case; "
            "for methods such as inpaint_given.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Map what is abnormal in volumes, on their own grid; finished cases are skipped.

    volumediff localize RUN -i sub-01_FLAIR.nii.gz -o out/ --method thor
    """
    from volumediff.inference.engine import localize as work

    summary = work(
        trained_run(run, which, device, data, memory),
        source,
        out,
        method=method,
        overrides=overrides or [],
        channels=names_of(channels),
        seed=seed,
        trace=trace,
        region=region,
        overwrite=overwrite,
        announce=say,
    )
    finish(summary)
