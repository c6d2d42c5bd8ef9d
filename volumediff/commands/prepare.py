"""`volumediff prepare`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import (
    Channels,
    LayoutOption,
    OutFolder,
    Overwrite,
    finish,
    names_of,
    out_line,
    spec_of,
)
from volumediff.errors import UsageError

__all__ = ["prepare"]


class MaskChoice(StrEnum):
    """Where the brain is; the names of `volumediff.alignment.aligning.BrainMask`."""

    given = "given"
    template = "template"
    none = "none"


def prepare(
    data: Annotated[Path, typer.Argument(help="Data set: folder, nnU-Net raw, BIDS, datalist.")],
    out: OutFolder,
    template: Annotated[
        str, typer.Option("--template", help="mni152, or a NIfTI file.")
    ] = "mni152",
    template_mask: Annotated[
        Path | None, typer.Option("--template-mask", help="Of the object in a template file.")
    ] = None,
    mask: Annotated[
        MaskChoice,
        typer.Option(
            "--mask",
            help="Brain mask: given (<case>_brainmask beside the images), template (brought back; "
            "for volumes with skull), none (volumes show the brain alone).",
        ),
    ] = MaskChoice.template,
    strip: Annotated[
        bool, typer.Option("--strip", help="Empty what is outside the mask.")
    ] = False,
    n4: Annotated[bool, typer.Option(help="Correct the bias field; not for CT.")] = True,
    channels: Channels = None,
    spacing_mm: Annotated[
        float | None, typer.Option("--spacing-mm", help="Voxels, if not the template's own.")
    ] = None,
    layout: LayoutOption = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Bring raw volumes to a template: bias field, brain mask, affine registration, resampling.

    volumediff prepare DATA -o aligned/ --mask template --spacing-mm 1.5
    """
    import math

    from volumediff.alignment.aligning import BrainMask, Steps
    from volumediff.alignment.prepare import prepare as work

    if spacing_mm is not None and not 0 < spacing_mm < math.inf:
        raise UsageError(f"--spacing-mm {spacing_mm:g}: expected millimetres above 0.")
    if not data.exists():
        raise UsageError(f"{data}: expected a data set, nothing is there.")
    from volumediff.data.templates import mni152, template_from

    if template != "mni152" and not Path(template).is_file():
        raise UsageError(f"--template {template}: expected mni152 or a NIfTI file.")
    if template == "mni152" and template_mask is not None:
        raise UsageError("--template-mask is for a template file; mni152 has its own.")
    chosen = mni152() if template == "mni152" else template_from(template, template_mask)
    found = work(
        data,
        out,
        template=chosen,
        steps=Steps(mask=BrainMask(mask.value), strip=strip, n4=n4),
        spacing_mm=spacing_mm,
        layout=spec_of(layout),
        channels=names_of(channels),
        overwrite=overwrite,
    )
    for case, reasons in found.flagged.items():
        out_line(f"look at {case}: {'; '.join(reasons)}")
    out_line(f"wrote {found.page}: look at the pictures before training")
    finish(found.summary)
