"""`volumediff sample`."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import (
    Device,
    Memory,
    Overwrite,
    Run,
    Seed,
    Which,
    WhichOption,
    finish,
    trained_run,
)

__all__ = ["sample"]


def sample(
    run: Run,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Output folder; RUN/samples by default.")
    ] = None,
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of volumes.")] = 1,
    sampler: Annotated[str, typer.Option("--sampler", help="Name of a sampler.")] = "dpmpp",
    steps: Annotated[int, typer.Option("--steps", min=1, help="Steps of the sampler.")] = 50,
    shape: Annotated[
        tuple[int, int, int] | None, typer.Option("--shape", help="Voxels along R, A, S.")
    ] = None,
    label: Annotated[int, typer.Option("--label", help="Class; 0 is healthy.")] = 0,
    attribute: Annotated[
        list[str] | None, typer.Option("--attribute", help="Scalars, such as age=60.")
    ] = None,
    which: WhichOption = Which.best,
    device: Device = "auto",
    memory: Memory = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draw new volumes and write them as NIfTI."""
    from volumediff.config import overridden
    from volumediff.inference.sample import sample as work

    summary = work(
        trained_run(run, which, device, memory=memory),
        out or run / "samples",
        count=count,
        sampler=sampler,
        steps=steps,
        shape=shape,
        label=label,
        attributes=overridden({}, attribute or []),
        seed=seed,
        overwrite=overwrite,
    )
    finish(summary)
