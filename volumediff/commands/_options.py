"""Options that several commands share, and functions that print.

The grammar is one for all commands: inputs are paths, words with `=` are overrides, a run is
`--run`, everything else is an option. Defaults and meanings are those of the Python functions.
"""

import inspect
import os
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from volumediff.commands import _completion
from volumediff.distributed.launch import is_main
from volumediff.errors import UsageError, printable
from volumediff.terminal import messages

if TYPE_CHECKING:
    from volumediff.data.survey import Spec
    from volumediff.outputs.batch import Summary

__all__ = [
    "Channels",
    "Classifier",
    "ConditionWords",
    "Config",
    "ConfigWords",
    "DataRoot",
    "Device",
    "DicomOutput",
    "Domain",
    "ExportedMethod",
    "Fill",
    "Force",
    "HubModel",
    "Json",
    "LayoutOption",
    "Memory",
    "Method",
    "MethodWords",
    "Mode",
    "ModeOption",
    "ModelOption",
    "OutFolder",
    "Overwrite",
    "Read",
    "RunArgument",
    "RunOption",
    "Seed",
    "Size",
    "TruthChoice",
    "Which",
    "WhichOption",
    "conditions_of",
    "defaults",
    "finish",
    "inputs_and_words",
    "names_of",
    "out_line",
    "print_json",
    "say",
    "spec_of",
    "words",
]


class Which(StrEnum):
    best = "best"
    last = "last"


class Mode(StrEnum):
    train = "train"
    infer = "infer"


class TruthChoice(StrEnum):
    synthetic = "synthetic"
    label = "label"


RUN_PANEL, DATA_PANEL = "The run, and the hardware", "Input data"


def words(example: str) -> Any:
    """The argument for overrides of a command, with an example that it takes."""
    return typer.Argument(metavar="KEY=VALUE", help=f"Overrides of settings, such as {example}.")


RunOption = Annotated[
    Path,
    typer.Option(
        "--run",
        metavar="RUN",
        help="Folder of a trained run.",
        rich_help_panel=RUN_PANEL,
        autocompletion=_completion.runs,
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(
        metavar="RUN", help="Folder of a trained run.", autocompletion=_completion.runs
    ),
]
ModelOption = Annotated[
    str,
    typer.Option(
        "--run",
        metavar="RUN",
        help="Folder of a trained run, a model file, or the name of a model that ships.",
        rich_help_panel=RUN_PANEL,
        autocompletion=_completion.models,
    ),
]
HubModel = Annotated[
    str,
    typer.Argument(
        metavar="PLACE", help="Model on the Hugging Face Hub: hf:OWNER/NAME, or with @REVISION."
    ),
]
ConfigWords = Annotated[list[str] | None, words("optim.lr=1e-4 or data.root=DATA")]
MethodWords = Annotated[list[str] | None, words("sampler.steps=10 or threshold=otsu")]
OutFolder = Annotated[Path, typer.Option("-o", "--output", help="Output folder.")]
Method = Annotated[
    str,
    typer.Option(
        "--method",
        help="Name of a localization method, or a YAML file.",
        autocompletion=_completion.methods,
    ),
]
ExportedMethod = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="Localization or segmentation method that the model is meant for, by name or as a "
        "YAML file; by default scan, or what a segmentation run was configured for.",
        autocompletion=_completion.methods,
    ),
]
WhichOption = Annotated[
    Which,
    typer.Option(
        "--which",
        help="Checkpoint: the best on validation volumes, or the last.",
        rich_help_panel=RUN_PANEL,
    ),
]
Device = Annotated[
    str,
    typer.Option(
        "--device", help="Device: auto, cpu, cuda, cuda:1 and so on.", rich_help_panel=RUN_PANEL
    ),
]
Seed = Annotated[int, typer.Option("--seed", help="Random seed.")]
Force = Annotated[
    bool,
    typer.Option(
        "--force",
        help="Take inputs that the run was plainly not trained for: another contrast or organ, "
        "not aligned, or a volume that loses more than 5 % to the run's shape.",
    ),
]
Fill = Annotated[
    Path | None,
    typer.Option(
        "--fill",
        metavar="RUN",
        help="Translation run that draws channels which a case lacks; results say so.",
        rich_help_panel=DATA_PANEL,
    ),
]
DicomOutput = Annotated[
    bool,
    typer.Option(
        "--dicom",
        help="Also write the results of DICOM series as DICOM Segmentation and structured report.",
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace results that were made with other settings.")
]
LayoutOption = Annotated[
    str,
    typer.Option(
        "--layout",
        help="Layout of the data set: auto, a name that info lists, or "
        "{name: msseg2015, rater: 2}.",
        rich_help_panel=DATA_PANEL,
    ),
]
Channels = Annotated[
    str | None,
    typer.Option(
        "--channels",
        help="Names of the images in the data, such as T1w,FLAIR.",
        rich_help_panel=DATA_PANEL,
    ),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(
        "--data", help="Folder of the run's data, if they were moved.", rich_help_panel=RUN_PANEL
    ),
]
Memory = Annotated[
    list[str] | None,
    typer.Option(
        "--memory",
        metavar="KEY=VALUE",
        help="Override of the memory policy that the run was trained with, such as slab=32.",
        rich_help_panel=RUN_PANEL,
    ),
]
Domain = Annotated[
    int,
    typer.Option(
        "--domain",
        min=1,
        help="Processes that share each volume, under torchrun or accelerate launch.",
        rich_help_panel=RUN_PANEL,
    ),
]
Read = Annotated[
    list[str] | None,
    typer.Option(
        "--read",
        metavar="KEY=VALUE",
        help="Decision on ambiguous files, such as no_forms=ras, forms=sform, frames=0 or "
        "series=UID.",
        rich_help_panel=DATA_PANEL,
    ),
]
Classifier = Annotated[
    Path | None,
    typer.Option(
        "--classifier",
        help="Folder of a trained classifier run, for methods that need one.",
        rich_help_panel=RUN_PANEL,
    ),
]
ConditionWords = Annotated[
    list[str] | None,
    typer.Option(
        "--condition",
        metavar="NAME=VALUE",
        help="Condition of the run, such as age=63, in place of the cases' own; age=estimate "
        "looks for the likeliest value. May be repeated.",
        rich_help_panel=DATA_PANEL,
    ),
]
Config = Annotated[
    str,
    typer.Argument(
        help="Configuration: a YAML file, or the name of a shipped one.",
        autocompletion=_completion.configs,
    ),
]
Size = Annotated[
    tuple[int, int, int] | None,
    typer.Option(
        "--shape", metavar="D H W", help="Size of the volumes in voxels, if not as configured."
    ),
]
ModeOption = Annotated[
    Mode, typer.Option("--mode", help="Whether a training step or inference is measured.")
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """The defaults of a Python function by argument, which are those of its command."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def inputs_and_words(given: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Paths and `key=value` overrides; a path with `=` is written with a folder, ./a=b."""
    paths, overrides = [], []
    for word in given:
        key, equals, _ = word.partition("=")
        if equals and os.sep not in key:
            overrides.append(word)
        else:
            paths.append(Path(word))
    return paths, overrides


def say(line: str) -> None:
    """A line about the work, once for all processes of a launch."""
    if is_main():
        messages.say(line)


def out_line(text: str) -> None:
    """A line of the result, once for all processes of a launch."""
    if is_main():
        messages.result(text)


def print_json(content: Any) -> None:
    """A result that was asked for: it is printed with `-q`, too."""
    import json

    if is_main():
        sys.stdout.write(f"{printable(json.dumps(content, indent=1, default=str))}\n")


def names_of(channels: str | None) -> tuple[str, ...] | None:
    if channels is None:
        return None
    names = tuple(c.strip() for c in channels.split(",") if c.strip())
    if not names:
        raise UsageError(f"channels {channels!r}: expected names such as T1w,FLAIR.")
    return names


def conditions_of(given: Sequence[str] | None) -> dict[str, str | float]:
    """Words such as age=63 as attributes of a case, with numbers as tables have them."""
    from volumediff.config import overridden

    found = overridden({}, given or [])
    return {name: float(v) if isinstance(v, int | float) else str(v) for name, v in found.items()}


def spec_of(layout: str) -> "Spec":
    """A layout as in a configuration: a name, or a mapping of its name and options."""
    from volumediff.config import overridden

    return overridden({}, [f"layout={layout}"])["layout"]


def finish(summary: "Summary") -> None:
    """The last line of a batch; failed cases, which were named before, make the command fail."""
    out_line(summary.line())
    # Of a launch the main process speaks: another one that fails first would have it ended.
    if summary.failed and is_main():
        raise typer.Exit(1)
