"""`volumediff import`: make a run of another tool's checkpoint."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import say, words
from volumediff.commands._written import WrittenFiles
from volumediff.errors import UsageError, shown

__all__ = ["import_"]


def import_(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND", help="Tool that made the checkpoint, such as wdm or patchddm."
        ),
    ],
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="Checkpoint of the other tool, the folder that the tool publishes, with the "
            "settings beside the weights, or hf:OWNER/NAME on the Hugging Face Hub, which "
            "@REVISION and /FILE may follow.",
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new run.")],
    overrides: Annotated[list[str] | None, words("data.root=DATA or importer.axes=LAS")] = None,
    ranges: Annotated[
        list[str] | None,
        typer.Option(
            "--range",
            metavar="NAME=LOW:HIGH",
            help="Lowest and highest value of a condition in the training of the other tool, such "
            "as age=44:82, where the tool does not say it. Values beyond are then noticed, and "
            "--condition age=estimate works. May be repeated.",
        ),
    ] = None,
    weights_only_pickle: Annotated[
        bool,
        typer.Option(
            "--weights-only-pickle",
            help="Read a .pt file, which is a pickle, with the restricted reader of torch: it "
            "builds tensors and nothing else.",
        ),
    ] = False,
) -> None:
    """Convert a checkpoint of another tool to a run; `info` lists the kinds.

    volumediff import wdm brats_unet_128_1200k.pt -o runs/wdm --weights-only-pickle
    """
    from volumediff.settings.import_record import import_records_of
    from volumediff.training.imported import import_run

    written = WrittenFiles(output)
    run = import_run(
        kind,
        path,
        output,
        overrides=overrides or [],
        ranges=dict(map(_range_of, ranges or [])),
        weights_only_pickle=weights_only_pickle,
        report=say,
    )
    for found in import_records_of(run):
        say(found.line)
    say(f"{run}: imported.")
    written.finish(then=f"volumediff calibrate --run {run} --healthy DATA")


def _range_of(word: str) -> tuple[str, tuple[float, float]]:
    """A word such as age=44:82."""
    name, _, ends = word.partition("=")
    low, _, high = ends.partition(":")
    try:
        return name, (float(low), float(high))
    except ValueError:
        raise UsageError(
            f"--range {shown(word)}: expected NAME=LOW:HIGH, such as age=44:82."
        ) from None
