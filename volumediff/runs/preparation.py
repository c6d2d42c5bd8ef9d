"""How the volumes of a run were prepared, so that new ones are prepared alike.

A data set that `prepare` wrote says so in its `prepared.json`; of another one, training volumes
are looked at: they lie in the template's space if, without being moved, they show its brain and
nothing else. What was found is kept as RUN/preparation.json, which goes with the run.
"""

from functools import cache
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from volumediff.data.alignment_geometry import Alignment
from volumediff.data.alignment_template import Template, mni152
from volumediff.data.foreground import foreground
from volumediff.data.mutual_information import mutual_information
from volumediff.data.volume import Volume, read
from volumediff.errors import DataError, UsageError
from volumediff.runs.trained import Trained
from volumediff.samples.preparation_record import (
    NAME,
    RunPreparation,
    recorded_preparation,
    told_preparation,
)
from volumediff.settings.sections import POPULATION
from volumediff.storage.records import write

__all__ = [
    "BRAIN_ML",
    "lies_in",
    "look_of",
    "preparation_of",
    "shown_in",
    "shows_brain_alone",
    "template_of",
]

LOOKED_AT = 3  # training volumes
LOOK_MM = 3.0
# Affinely aligned brains overlap the MNI152 by 0.9 to 0.97, brains in scanner coordinates by less.
LEAST_DICE = 0.88
# Similarity with the template: 0.05 to 0.12 for aligned brains, below 0.043 for anything else.
LEAST_SIMILARITY = 0.045
# Of a brain; other volumes are not compared with the template at all.
BRAIN_ML = (800.0, 3000.0)


def preparation_of(trained: Trained) -> RunPreparation | None:
    """How the volumes of a run were prepared; None where nobody knows.

    Raises:
        DataError: the run's record is damaged
    """
    found = recorded_preparation(trained.run)
    if found is not None:
        return found
    root = trained.config.data.root
    if root in (None, POPULATION) or not Path(str(root)).exists():
        return None
    found = told_preparation(Path(str(root))) or _measured(trained)
    if found is not None:
        write(trained.run / NAME, found)
    return found


def template_of(preparation: RunPreparation) -> Template | None:
    """The template of a preparation; None where it does not ship with the package."""
    return mni152() if preparation.template == "mni152" else None


def look_of(preparation: RunPreparation) -> Template | None:
    """The template of a preparation as coarse as `lies_in` looks at it, for one scan after the
    other; None where it does not ship with the package."""
    return _look() if preparation.template == "mni152" else None


@cache
def _look() -> Template:
    return mni152().at(LOOK_MM)


def shown_in(volume: Volume) -> tuple[Bool[np.ndarray, "d h w"], float]:
    """The foreground of the first channel, and its millilitres."""
    shown = foreground(volume.array[0], "auto")
    return shown, float(shown.sum()) * float(np.prod(volume.spacing_mm)) / 1000


def shows_brain_alone(volume: Volume) -> bool:
    """Whether what is shown is no more than a brain, with nothing but zeros around it."""
    shown, millilitres = shown_in(volume)
    return millilitres <= BRAIN_ML[1] and bool((volume.array[0][~shown] == 0).all())


def lies_in(volume: Volume, template: Template) -> bool:
    """Whether a volume shows the template's object, where the template has it, and nothing else.

    Arguments:
        volume: its first channel is looked at
        template: with any voxels
    """
    x = volume.array[0]
    shown, millilitres = shown_in(volume)
    if not BRAIN_ML[0] <= millilitres <= BRAIN_ML[1]:
        return False
    coarse = template.at(LOOK_MM)
    unmoved = Alignment(volume.native, coarse.grid, np.eye(4))
    there = unmoved.apply(shown[None].astype(np.float32), fill=0.0)[0] >= 0.5
    inside = coarse.object
    dice = 2 * float((there & inside).sum()) / max(1.0, float(there.sum() + inside.sum()))
    if dice < LEAST_DICE:
        return False
    moved = unmoved.apply(x[None], fill=min(0.0, float(x.min())))[0]
    return mutual_information(moved[inside], coarse.x[inside]) >= LEAST_SIMILARITY


def _measured(trained: Trained) -> RunPreparation | None:
    try:
        cases = trained.cases("train")[:LOOKED_AT]
        policy = trained.preprocessing.policy
        volumes = [read(next(iter(case.images.values())), policy=policy) for case in cases]
    except (DataError, UsageError):  # moved data: nobody knows, and the command says so
        return None
    if not volumes:
        return None
    here = all(lies_in(volume, _look()) for volume in volumes)
    name = "mni152" if here else None
    return RunPreparation(template=name, stripped=here, n4=False, source="training volumes")
