"""The brain of a scan that shows the head, alone on the scan's own grid.

It is for runs whose volumes were skull-stripped and lie in the space of no template that ships,
such as imported ones: a scan stays where it lies.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from volumediff.data.alignment_geometry import Alignment
from volumediff.data.alignment_template import mni152
from volumediff.data.brain_extraction import extracted_brain
from volumediff.data.grid import Grid, agree
from volumediff.data.registration import RegistrationVolume, align_affine
from volumediff.data.volume import Volume
from volumediff.errors import DataError
from volumediff.runs.preparation import shown_in, shows_brain_alone, template_of
from volumediff.samples.preparation_record import RunPreparation

__all__ = ["stripped", "strips", "unaligned"]


def strips(preparation: RunPreparation | None) -> bool:
    """Whether scans of a run are stripped on their own grid: those of a template's space are
    stripped when they are aligned with it."""
    return preparation is not None and preparation.stripped and template_of(preparation) is None


def unaligned(preparation: RunPreparation | None) -> list[str]:
    """What a reader must know of a scan that was stripped where it lies: nothing, if the run's
    volumes lay in the space of no template, either."""
    if preparation is None or preparation.template is None:
        return []
    return [
        f"The volumes that {preparation.source} was trained with lie in the space of "
        f"{preparation.template}, which does not ship with volumediff: the scan was "
        "skull-stripped where it lies and not aligned. Register it with that template first, "
        "unless it lies there."
    ]


def stripped(images: Mapping[str, Volume]) -> Mapping[str, Volume] | None:
    """The images without what is not brain; None where the first shows the brain alone already.

    Arguments:
        images: channel -> one volume; the brain is looked for in the first, and images on other
            grids lie on it by their scanner coordinates

    Raises:
        DataError: no brain is found
    """
    first = next(iter(images.values()))
    if shows_brain_alone(first):
        return None
    template, (shown, _) = mni152(), shown_in(first)
    matrix = align_affine(
        RegistrationVolume(first.array[0], shown, first.grid),
        RegistrationVolume(template.x, template.object, template.grid),
        skull=True,
    )
    brain = extracted_brain(first.array[0], first.grid, matrix=matrix, template=template)
    if not brain.any():
        raise DataError(
            "shows more than a brain, and no brain is found in it; give volumes that are "
            "skull-stripped, as those of the run were."
        )
    return {name: _inside(volume, brain, first.grid) for name, volume in images.items()}


def _inside(volume: Volume, brain: np.ndarray, grid: Grid) -> Volume:
    """A volume that is empty outside of a mask on another grid."""
    mask = brain
    if agree(grid, volume.grid) is not None:
        way = Alignment(Grid(grid.shape, grid.affine), volume.grid, np.eye(4))
        mask = way.apply_labels(brain[None].astype(np.uint8))[0] > 0
    empty = min(0.0, float(volume.array.min()))
    return replace(volume, array=np.where(mask, volume.array, np.float32(empty)))
