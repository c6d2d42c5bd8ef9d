"""`volumediff segment`: options of the command; their defaults are in `inference.options`."""

from typing import Annotated

import typer

from volumediff.api.files import segment_files
from volumediff.commands import _completion
from volumediff.commands._account import Strict, account_for, accounts
from volumediff.commands._options import (
    Channels,
    ConditionWords,
    DicomOutput,
    Fill,
    Force,
    LayoutOption,
    OutFolder,
    Overwrite,
    Seed,
    conditions_of,
    defaults,
    finish,
    inputs_and_words,
    names_of,
    say,
    spec_of,
)
from volumediff.commands._run_choice import RunChoice, with_run
from volumediff.commands._written import WrittenFiles

__all__ = ["segment"]

WORK = defaults(segment_files)


@accounts
@with_run()
def segment(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT|KEY=VALUE",
            help="Volumes, folders of cases, datalists or tables of cases; and overrides "
            "of the method, such as samples=10 (write ./a=b for a path with =).",
        ),
    ],
    run: RunChoice,
    output: OutFolder,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Name of a segmentation method, or a YAML file; that of the run by default.",
            autocompletion=_completion.methods,
        ),
    ] = WORK["method"],
    channels: Channels = WORK["channels"],
    layout: LayoutOption = WORK["layout"],
    seed: Seed = WORK["seed"],
    write_samples: Annotated[
        bool, typer.Option("--write-samples", help="Write the label map of every sample.")
    ] = WORK["write_samples"],
    force: Force = WORK["force"],
    condition: ConditionWords = None,
    fill: Fill = WORK["fill"],
    dicom: DicomOutput = WORK["dicom"],
    overwrite: Overwrite = WORK["overwrite"],
    strict: Strict = False,
) -> None:
    """Segment volumes with a run that was trained on labels, on their own grid.

    volumediff segment case.nii.gz --run runs/lesions -o out/ samples=10
    """
    written, (inputs, words) = WrittenFiles(output), inputs_and_words(given)
    account_for(inputs, layout=spec_of(layout), channels=names_of(channels), strict=strict)
    summary = segment_files(
        run.load(),
        inputs,
        output,
        method=method,
        overrides=words,
        channels=names_of(channels),
        layout=spec_of(layout),
        seed=seed,
        force=force,
        fill=fill,
        dicom=dicom,
        write_samples=write_samples,
        conditions=conditions_of(condition),
        overwrite=overwrite,
        report=say,
    )
    there = summary.done or summary.skipped
    then = f"volumediff evaluate {output} --truth DATA --report" if there else ""
    written.finish(then=then)
    finish(summary)
