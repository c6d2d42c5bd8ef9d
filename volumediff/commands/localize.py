"""`volumediff localize`: options of the command; their defaults are in `inference.options`."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.files import localize_files
from volumediff.commands import _completion
from volumediff.commands._account import Strict, account_for, accounts
from volumediff.commands._options import (
    Channels,
    Classifier,
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

__all__ = ["localize"]

WORK = defaults(localize_files)


@accounts
@with_run(shipped="t1w")
def localize(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT|KEY=VALUE",
            help="Volumes, folders of cases, datalists or tables of cases; and overrides "
            "of the method, such as sampler.steps=10 (write ./a=b for a path with =).",
        ),
    ],
    output: OutFolder,
    run: RunChoice,
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            help="Name of a localization method, or a YAML file; that of the model by default.",
            autocompletion=_completion.methods,
        ),
    ] = WORK["method"],
    classifier: Classifier = WORK["classifier"],
    saliency: Annotated[
        Path | None,
        typer.Option(
            "--saliency", help="Map that replaces the method's first pass: a file, or a folder."
        ),
    ] = WORK["saliency"],
    channels: Channels = WORK["channels"],
    layout: LayoutOption = WORK["layout"],
    seed: Seed = WORK["seed"],
    site: Annotated[
        Path | None,
        typer.Option(
            "--site", help="Healthy volumes of the site, on which the thresholds are fitted."
        ),
    ] = WORK["site"],
    trace: Annotated[
        bool, typer.Option(help="Also write the masks and maps of the components of the method.")
    ] = WORK["trace"],
    region: Annotated[
        Path | None,
        typer.Option(
            "--region",
            metavar="MASK",
            help="Region to redraw, on any grid: a mask, or a folder of masks by case; for "
            "methods such as inpaint_given.",
        ),
    ] = WORK["region"],
    page: Annotated[
        bool, typer.Option("--report/--no-report", help="Write OUT/findings.html.")
    ] = True,
    force: Force = WORK["force"],
    limits: Annotated[
        bool,
        typer.Option(
            "--limits/--no-limits",
            help="For a model of latents, measure how small a lesion its autoencoder keeps; takes "
            "two passes through the autoencoder per case.",
        ),
    ] = WORK["limits"],
    condition: ConditionWords = None,
    fill: Fill = WORK["fill"],
    dicom: DicomOutput = WORK["dicom"],
    overwrite: Overwrite = WORK["overwrite"],
    strict: Strict = False,
) -> None:
    """Map what is abnormal in volumes, on their own grid; finished cases are skipped.

    A raw scan is prepared as the run's volumes were: brain extraction, alignment, bias field.

    volumediff localize RAW.nii.gz -o out/

    volumediff localize sub-01_FLAIR.nii.gz --run runs/brain -o out/ --method thor
    """
    written, (inputs, words) = WrittenFiles(output), inputs_and_words(given)
    account_for(inputs, layout=spec_of(layout), channels=names_of(channels), strict=strict)
    summary = localize_files(
        run.load(),
        inputs,
        output,
        method=method,
        overrides=words,
        classifier=classifier,
        saliency=saliency,
        channels=names_of(channels),
        layout=spec_of(layout),
        seed=seed,
        fill=fill,
        dicom=dicom,
        trace=trace,
        force=force,
        limits=limits,
        conditions=conditions_of(condition),
        region=region,
        site=site,
        overwrite=overwrite,
        report=say,
    )
    found = None
    if page and summary.last and (summary.done or summary.skipped):
        from volumediff.inference.findings import find_in_folder
        from volumediff.reporting.findings_page import Gallery

        gallery = Gallery(output)
        find_in_folder(
            output,
            inputs,
            channels=names_of(channels),
            layout=spec_of(layout),
            look=gallery.add,
        )
        found = gallery.write()
    there = summary.done or summary.skipped
    then = f"volumediff evaluate {output} --truth DATA --report" if there else ""
    written.finish(look=found, then=then)
    finish(summary)
