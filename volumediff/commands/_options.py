"""Options that several commands share, and how they print."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.data.survey import Spec
    from volumediff.outputs.batch import Summary
    from volumediff.runs.trained import Trained

__all__ = [
    "Channels",
    "Classifier",
    "Config",
    "DataRoot",
    "Device",
    "Json",
    "LayoutOption",
    "Memory",
    "Mode",
    "ModeOption",
    "OutFolder",
    "Overwrite",
    "Run",
    "Seed",
    "SiteFolder",
    "Size",
    "Source",
    "Truth",
    "Which",
    "WhichOption",
    "Words",
    "finish",
    "names_of",
    "out_line",
    "print_json",
    "say",
    "spec_of",
    "trained_run",
]


class Which(StrEnum):
    best = "best"
    last = "last"


class Mode(StrEnum):
    train = "train"
    infer = "infer"


class Truth(StrEnum):
    synthetic = "synthetic"
    label = "label"


Run = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a trained run.")]
Words = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, such as optim.lr=1e-4."),
]
Source = Annotated[
    Path, typer.Option("-i", "--input", help="Volume, folder of cases, or datalist JSON.")
]
OutFolder = Annotated[Path, typer.Option("-o", "--out", help="Output folder.")]
WhichOption = Annotated[Which, typer.Option("--which", help="Checkpoint of the run.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, ...")]
Seed = Annotated[int, typer.Option("--seed", help="Of everything that is drawn.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results of other settings in the folder.")
]
LayoutOption = Annotated[
    str,
    typer.Option(
        "--layout",
        help="Of the data set: auto, a name that info lists, or {name: msseg2015, rater: 2}.",
    ),
]
Channels = Annotated[
    str | None, typer.Option("--channels", help="Names of the images, such as T1w,FLAIR.")
]
DataRoot = Annotated[
    str | None, typer.Option("--data", help="Where the run's data are now, if they were moved.")
]
SiteFolder = Annotated[
    Path | None,
    typer.Option("--site", help="Healthy volumes of the site that gives the thresholds."),
]
Memory = Annotated[
    list[str] | None,
    typer.Option(
        "--memory", metavar="KEY=VALUE", help="Memory policy, such as slab=32, not the training's."
    ),
]
Classifier = Annotated[
    Path | None,
    typer.Option("--classifier", help="Run of the classifier that the method takes, if any."),
]
Config = Annotated[str, typer.Argument(help="YAML file, or the name of a shipped one.")]
Size = Annotated[
    tuple[int, int, int] | None,
    typer.Option("--shape", metavar="D H W", help="Voxels of the volumes, if not as configured."),
]
ModeOption = Annotated[Mode, typer.Option("--mode", help="A training step, or inference.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def out_line(text: str) -> None:
    sys.stdout.write(f"{text}\n")


def print_json(content: Any) -> None:
    import json

    out_line(json.dumps(content, indent=1, default=str))


def names_of(channels: str | None) -> tuple[str, ...] | None:
    if channels is None:
        return None
    names = tuple(c.strip() for c in channels.split(",") if c.strip())
    if not names:
        raise UsageError(f"--channels {channels!r}: expected names such as T1w,FLAIR.")
    return names


def spec_of(layout: str) -> "Spec":
    """A layout as in a configuration, looked up before anything is read."""
    from volumediff.config import available, build, overridden
    from volumediff.data.survey import AUTO

    spec = overridden({}, [f"layout={layout}"])["layout"]
    if spec == AUTO:
        return AUTO
    if isinstance(spec, str) and ":" not in spec and spec not in available("layout"):
        names = ", ".join([AUTO, *available("layout")])
        raise UsageError(f"--layout {layout}: choose from {names}.")
    build("layout", spec, where="--layout")
    return spec


def trained_run(
    run: Path,
    which: Which,
    device: str,
    data: str | None = None,
    memory: list[str] | None = None,
) -> "Trained":
    from dataclasses import replace

    from volumediff.runs.trained import load_trained

    trained = load_trained(run, which=which.value, device=device, memory=memory or [])
    if data is None:
        return trained
    moved = trained.config.data.model_copy(update={"root": data})
    return replace(trained, config=trained.config.model_copy(update={"data": moved}))


def finish(summary: "Summary") -> None:
    """The last lines of a batch; failed cases make the command fail."""
    out_line(summary.line())
    for case, reason in summary.failed.items():
        say(f"volumediff: {case}: {reason}")
    if summary.failed:
        raise typer.Exit(1)
