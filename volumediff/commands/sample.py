"""`volumediff sample`: draw new volumes."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.files import sample_files
from volumediff.api.run import load
from volumediff.commands._options import (
    DataRoot,
    Device,
    Domain,
    Memory,
    Overwrite,
    RunOption,
    Seed,
    WhichOption,
    conditions_of,
    defaults,
    finish,
    words,
)
from volumediff.memory.heap import retain_heap

__all__ = ["sample"]

LOAD, WORK = defaults(load), defaults(sample_files)


def sample(
    run: RunOption,
    overrides: Annotated[list[str] | None, words("sampler=ddim or sampler.steps=20")] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Output folder; RUN/samples if none is given."),
    ] = WORK["output"],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="Number of volumes.")] = WORK[
        "n"
    ],
    shape: Annotated[
        tuple[int, int, int] | None,
        typer.Option("--shape", help="Voxels along R, A and S, if not those of the run."),
    ] = WORK["shape"],
    label: Annotated[
        int, typer.Option("--label", help="Class of the volumes; 0 is healthy.")
    ] = WORK["label"],
    condition: Annotated[
        list[str] | None,
        typer.Option(
            "--condition",
            metavar="NAME=VALUE",
            help="Condition of the run, such as age=60. May be repeated.",
        ),
    ] = None,
    which: WhichOption = LOAD["which"],
    device: Device = LOAD["device"],
    memory: Memory = None,
    domain: Domain = LOAD["domain"],
    seed: Seed = WORK["seed"],
    data: DataRoot = LOAD["data"],
    overwrite: Overwrite = WORK["overwrite"],
) -> None:
    """Draw new volumes and write them as NIfTI.

    volumediff sample --run runs/brain -n 4 -o samples/ sampler.steps=20
    """
    retain_heap()
    summary = sample_files(
        load(run, which=which.value, device=device, memory=memory or (), data=data, domain=domain),
        output,
        count,
        overrides=overrides or [],
        shape=shape,
        label=label,
        attributes=conditions_of(condition),
        seed=seed,
        overwrite=overwrite,
    )
    finish(summary)
