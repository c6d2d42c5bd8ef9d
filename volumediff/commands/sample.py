"""`volumediff sample`: draw new volumes."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.files import sample_files
from volumediff.commands._options import (
    Overwrite,
    Seed,
    conditions_of,
    defaults,
    finish,
    words,
)
from volumediff.commands._run_choice import RunChoice, with_run
from volumediff.commands._written import WrittenFiles

__all__ = ["sample"]

WORK = defaults(sample_files)


@with_run(without=["read"])
def sample(
    run: RunChoice,
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
    seed: Seed = WORK["seed"],
    overwrite: Overwrite = WORK["overwrite"],
) -> None:
    """Draw new volumes and write them as NIfTI.

    volumediff sample --run runs/brain -n 4 -o samples/ sampler.steps=20
    """
    folder = Path(run.place) / "samples" if output is None else output
    written = WrittenFiles(folder)
    summary = sample_files(
        run.load(),
        output,
        count,
        overrides=overrides or [],
        shape=shape,
        label=label,
        attributes=conditions_of(condition),
        seed=seed,
        overwrite=overwrite,
    )
    written.finish(then=f"volumediff evaluate {folder} --real DATA --run {run.place} --report")
    finish(summary)
