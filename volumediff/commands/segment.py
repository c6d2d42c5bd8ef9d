"""`volumediff segment`."""

from typing import Annotated

import typer

from volumediff.commands._options import (
    Channels,
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
    trained_run,
)

__all__ = ["segment"]


def segment(
    run: Run,
    source: Source,
    out: OutFolder,
    overrides: Words = None,
    method: Annotated[
        str, typer.Option("--method", help="Segmenter by name or YAML file.")
    ] = "label_diffusion",
    which: WhichOption = Which.best,
    channels: Channels = None,
    device: Device = "auto",
    memory: Memory = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Segment volumes with a run of the recipe label_diffusion, on their own grid."""
    from volumediff.inference.segment import segment as work

    summary = work(
        trained_run(run, which, device, memory=memory),
        source,
        out,
        method=method,
        overrides=overrides or [],
        channels=names_of(channels),
        seed=seed,
        overwrite=overwrite,
    )
    finish(summary)
