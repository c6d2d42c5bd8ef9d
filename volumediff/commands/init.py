"""`volumediff init`: a commented configuration for a data set."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.data_sets import propose
from volumediff.commands._options import (
    Channels,
    LayoutOption,
    Read,
    defaults,
    names_of,
    say,
    spec_of,
)
from volumediff.commands._written import WrittenFiles
from volumediff.errors import UsageError

__all__ = ["init"]

WORK = defaults(propose)


class GoalChoice(StrEnum):
    localization = "localization"
    segmentation = "segmentation"


class PipelineChoice(StrEnum):
    auto = "auto"
    patch = "patch"
    wavelet = "wavelet"
    pseudo3d = "pseudo3d"


def init(
    data: Annotated[
        Path,
        typer.Argument(metavar="DATA", help="Data set: a folder, a datalist or a table of cases."),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="YAML file to which the configuration goes.")
    ],
    goal: Annotated[
        GoalChoice,
        typer.Option(
            "--for",
            help="What is to be trained: a model of healthy volumes for the localization of "
            "anomalies, or the segmentation of the labels in the data.",
        ),
    ] = WORK["goal"],
    pipeline: Annotated[
        PipelineChoice,
        typer.Option(
            "--pipeline",
            help="Pipeline of the model; auto takes pseudo3d for thick slices, else wavelet.",
        ),
    ] = WORK["pipeline"],
    vram: Annotated[
        float | None,
        typer.Option(
            "--vram", help="Memory of the GPU in GB; by default that of the GPU that is found."
        ),
    ] = WORK["vram_gb"],
    layout: LayoutOption = WORK["layout"],
    channels: Channels = WORK["channels"],
    read: Read = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace the file if there is one.")
    ] = False,
) -> None:
    """Look at a data set and write a configuration for it, with the reason of every choice.

    volumediff init DATA -o brain.yaml --vram 16

    volumediff init DATA -o lesions.yaml --for segmentation
    """
    from volumediff.settings.json_schema import SCHEMA_FILE, json_schema
    from volumediff.storage.atomic import write_text
    from volumediff.terminal.progress import Progress

    if output.suffix not in (".yaml", ".yml"):
        raise UsageError(f"-o {output}: expected a name that ends with .yaml.")
    if output.exists() and not force:
        raise UsageError(f"{output}: is there already; name another file, or give --force.")
    schema = output.with_name(SCHEMA_FILE)
    written = WrittenFiles(output, schema)
    with Progress(0, "cases") as bar:

        def done(count: int, total: int) -> None:
            bar.total = total
            bar.update(count)

        found = propose(
            data,
            goal=goal.value,
            pipeline=pipeline.value,
            vram_gb=vram,
            output=Path("runs") / output.stem,
            layout=spec_of(layout),
            channels=names_of(channels),
            read=read or (),
            progress=done,
            report=say,
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_text(schema, json_schema())
    write_text(output, found.to_yaml(schema=SCHEMA_FILE))
    for remark in found.remarks:
        say(f"note: {remark}")
    written.finish(then=f"read {output}, then: volumediff train {output}")
