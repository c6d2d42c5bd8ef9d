"""Volumes to a template and their results back: `prepare` and `restore` in Python."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from volumediff.api.arguments import Place, Report, sources_of
from volumediff.api.layouts import known_layout
from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.alignment.prepare import Preparation
    from volumediff.api.reading import Read
    from volumediff.data.survey import Spec
    from volumediff.outputs.batch import Summary

__all__ = ["prepare", "restore"]


def prepare(
    raw: Place | Sequence[Place],
    output: Place,
    *,
    run: Place | None = None,
    template: Place = "mni152",
    template_mask: Place | None = None,
    mask: Literal["given", "template", "none"] = "template",
    strip: bool | None = None,
    n4: bool | None = None,
    spacing_mm: float | None = None,
    layout: "Spec" = "auto",
    channels: Sequence[str] | None = None,
    read: "Read" = (),
    overwrite: bool = False,
    progress: Report | None = None,
) -> "Preparation":
    """Brings raw volumes to a template: bias field, brain mask, affine registration, resampling.

    Arguments:
        raw: volumes or data sets in any layout, one or several
        output: folder of the prepared data set
        run: that is to work on the volumes; whether they are stripped and corrected is then taken
            from its training volumes, and their template must be MNI152
        template: `mni152`, or a NIfTI file
        template_mask: mask of the object in a template file
        mask: of the brain: `given` (<case>_brainmask beside the images), `template` (brought back,
            for volumes with skull), `none` (volumes show the brain alone)
        strip: whether what is outside of the mask is emptied; None does as the run, else not
        n4: whether the bias field is corrected, not for CT; None does as the run, else does
        spacing_mm: of the outputs; None takes the template's own
        layout, channels, read: as for `check`
        overwrite: whether results of other settings in the folder may be replaced
        progress: receives a line per case; None shows progress on the terminal

    Raises:
        UsageError: arguments that do not fit, or a folder with results of other settings
        DataError: the data set has no cases, or the disk is full
    """
    import math

    from volumediff.alignment.aligning import BrainMask, Steps
    from volumediff.alignment.prepare import prepare as work
    from volumediff.api.reading import read_policy
    from volumediff.data.alignment_template import mni152, template_from

    if spacing_mm is not None and not 0 < spacing_mm < math.inf:
        raise UsageError(f"spacing {spacing_mm:g}: expected millimetres above 0.")
    sources = sources_of(raw)
    for source in sources:
        if not source.exists():
            raise UsageError(f"{source}: expected a volume or a data set, nothing is there.")
    own = str(template) == "mni152"
    if not own and not Path(template).is_file():
        raise UsageError(f"template {template}: expected mni152 or a NIfTI file.")
    if own and template_mask is not None:
        raise UsageError("template mask: is for a template file; mni152 has its own.")
    strips, corrects = False, True
    if run is not None:
        strips, corrects = _steps_of(run)
        if not own:
            raise UsageError("template: is that of the run; leave one of them out.")
    strip, n4 = (strips if strip is None else strip), (corrects if n4 is None else n4)
    return work(
        sources,
        output,
        template=mni152() if own else template_from(template, template_mask),
        steps=Steps(mask=BrainMask(mask), strip=strip, n4=n4, read=read_policy(read)),
        spacing_mm=spacing_mm,
        layout=known_layout(layout),
        channels=channels,
        overwrite=overwrite,
        report=progress,
    )


def _steps_of(run: Place) -> tuple[bool, bool]:
    """Whether the volumes of a run are stripped, and whether their bias field was corrected.

    Raises:
        UsageError: nobody knows, or they lie in the space of no template that ships
    """
    from volumediff.runs.model_file import resolve
    from volumediff.runs.preparation import preparation_of, template_of
    from volumediff.runs.trained import load_trained
    from volumediff.samples.preparation_record import recorded_preparation

    folder = resolve(run)
    found = recorded_preparation(folder) or preparation_of(load_trained(folder, device="cpu"))
    if found is None:
        raise UsageError(
            f"{run}: does not know how its volumes were prepared, and they are not where they "
            "were; prepare without the run, and choose template, mask and bias correction."
        )
    if template_of(found) is None:
        where = "no template" if found.template is None else f"the template {found.template}"
        raise UsageError(
            f"{run}: its volumes lie in the space of {where}, expected MNI152; prepare without "
            "the run, with a template of your own."
        )
    return found.stripped, found.n4


def restore(
    maps: Place | Sequence[Place],
    output: Place,
    *,
    prepared: Place,
    channel: str | None = None,
    overwrite: bool = False,
    progress: Report | None = None,
) -> "Summary":
    """Brings maps and masks of prepared volumes back to the grids of the original images.

    Arguments:
        maps: folders of results for prepared volumes, one or several
        output: folder of the restored ones
        prepared: folder that `prepare` wrote
        channel: image whose grid is wanted; None takes the first
        overwrite: whether results of other settings in the folder may be replaced
        progress: receives a line per case; None shows progress on the terminal

    Raises:
        UsageError: a folder is not what it should be, or there are no maps
        DataError: the disk is full
    """
    from volumediff.alignment.restore import restore as work

    return work(
        sources_of(maps), prepared, output, channel=channel, overwrite=overwrite, report=progress
    )
