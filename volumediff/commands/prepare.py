"""`volumediff prepare`: bring raw volumes to a template."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.alignment import prepare as work
from volumediff.commands._account import Strict, account_for, accounts
from volumediff.commands._options import (
    Channels,
    LayoutOption,
    OutFolder,
    Overwrite,
    Read,
    defaults,
    finish,
    names_of,
    out_line,
    spec_of,
)
from volumediff.commands._written import WrittenFiles

__all__ = ["prepare"]

WORK = defaults(work)


class MaskChoice(StrEnum):
    """Where the brain is; the names of `volumediff.alignment.aligning.BrainMask`."""

    given = "given"
    template = "template"
    none = "none"


@accounts
def prepare(
    data: Annotated[
        list[Path],
        typer.Argument(
            metavar="RAW", help="Data sets: folders, nnU-Net raw, BIDS, datalists; and volumes."
        ),
    ],
    output: OutFolder,
    template: Annotated[
        str, typer.Option("--template", help="Template: mni152, or a NIfTI file.")
    ] = WORK["template"],
    template_mask: Annotated[
        Path | None,
        typer.Option("--template-mask", help="Mask of the object in the template file."),
    ] = WORK["template_mask"],
    mask: Annotated[
        MaskChoice,
        typer.Option(
            "--mask",
            help="Brain mask: given (<case>_brainmask beside the images), template (brought back; "
            "for volumes with skull), none (volumes show the brain alone).",
        ),
    ] = WORK["mask"],
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="Run that is to work on the volumes: a folder, a model file or the name of a "
            "model. They are stripped and corrected as its training volumes were.",
        ),
    ] = WORK["run"],
    strip: Annotated[
        bool | None,
        typer.Option(
            "--strip/--no-strip",
            help="Set voxels outside of the mask to the background value; not by default.",
        ),
    ] = WORK["strip"],
    n4: Annotated[
        bool | None,
        typer.Option("--n4/--no-n4", help="Correct the bias field, the default; not for CT."),
    ] = WORK["n4"],
    channels: Channels = WORK["channels"],
    read: Read = None,
    spacing_mm: Annotated[
        float | None,
        typer.Option("--spacing-mm", help="Voxel size of the outputs, if not the template's own."),
    ] = WORK["spacing_mm"],
    layout: LayoutOption = WORK["layout"],
    overwrite: Overwrite = WORK["overwrite"],
    strict: Strict = False,
) -> None:
    """Bring raw volumes to a template: bias field, brain mask, affine registration, resampling.

    volumediff prepare RAW -o aligned/ --mask template --spacing-mm 1.5

    volumediff prepare RAW -o aligned/ --run t1w
    """
    written = WrittenFiles(output)
    account_for(data, layout=spec_of(layout), channels=names_of(channels), strict=strict)
    found = work(
        data,
        output,
        run=run,
        template=template,
        template_mask=template_mask,
        mask=mask.value,
        strip=strip,
        n4=n4,
        spacing_mm=spacing_mm,
        layout=spec_of(layout),
        channels=names_of(channels),
        read=read or (),
        overwrite=overwrite,
    )
    for case, reasons in found.flagged.items():
        out_line(f"look at {case}: {'; '.join(reasons)}")
    written.finish(look=found.page, then=f"volumediff init {output} -o config.yaml")
    finish(found.summary)
