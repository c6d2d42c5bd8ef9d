"""Generated and real volumes as they are compared: on one grid, with one meaning of intensities.

With the run that drew the samples the real volumes are prepared as those that it was trained on.
Without it both are taken as they are.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from volumediff.data.cases import Case
from volumediff.data.files import digests
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.seen import Seen
from volumediff.data.survey import Spec, find_cases
from volumediff.data.truth import label_map
from volumediff.data.volume import check_grids, read
from volumediff.errors import DataError
from volumediff.runs.trained import Trained
from volumediff.samples.sources import cases_of
from volumediff.settings.sections import POPULATION

__all__ = [
    "ComparedVolume",
    "VolumeSet",
    "check_form",
    "real_volumes",
    "volumes_in",
    "was_trained_on",
]

Triple = tuple[float, float, float]
SAME_SPACING = 0.01  # relative difference that rounding in headers explains


@dataclass(frozen=True, eq=False)
class ComparedVolume:
    """One volume.

    Arguments:
        case: where it is from
        x: channels, axes along R, A, S
        label: what every voxel is, where somebody has said so
        spacing_mm: along d, h, w
    """

    case: Case
    x: Float[Tensor, "c d h w"]
    label: UInt8[Tensor, "d h w"] | None
    spacing_mm: Triple


@dataclass(frozen=True, eq=False)
class VolumeSet:
    """Volumes that are read one by one.

    Arguments:
        place: their folder
        cases: each is a volume
        read: a case's volume
    """

    place: str
    cases: Sequence[Case]
    read: Callable[[Case], ComparedVolume]

    @property
    def by_patient(self) -> list[Case]:
        """The first volume of every patient: statistics count independent volumes."""
        return list({case.patient: case for case in reversed(self.cases)}.values())[::-1]

    def only(self, cases: Sequence[Case]) -> "VolumeSet":
        """Some of the volumes."""
        return replace(self, cases=cases)


def volumes_in(
    place: Path | str,
    *,
    layout: Spec,
    policy: ReadPolicy,
    spacing_mm: Triple | None = None,
) -> VolumeSet:
    """The volumes of a folder as they are.

    Arguments:
        spacing_mm: of samples whose run has no spacing of its own; None takes that of the files

    Raises:
        DataError: there are none
    """

    def one(case: Case) -> ComparedVolume:
        images = [read(path, policy=policy) for path in case.images.values()]
        label = None if case.label is None else label_map(case.label, policy)
        for other in (*images[1:], *([] if label is None else [label])):
            check_grids(images[0], other)
        x = np.concatenate([image.array for image in images])
        voxels = None if label is None else torch.from_numpy(label.array[0].astype(np.uint8))
        x = torch.from_numpy(np.ascontiguousarray(x, np.float32))
        return ComparedVolume(case, x, voxels, spacing_mm or images[0].spacing_mm)

    return VolumeSet(str(place), find_cases(place, layout), one)


def real_volumes(
    place: Path | str, *, layout: Spec, policy: ReadPolicy, trained: Trained | None
) -> VolumeSet:
    """Real volumes, prepared as the run asks where there is one.

    Arguments:
        place: data set, or `population` for a run of simulated subjects

    Raises:
        DataError: there are none
        UsageError: they have not the channels of the run
    """
    if trained is None:
        return volumes_in(place, layout=layout, policy=policy)
    data = trained.config.data.model_copy(update={"root": str(place), "layout": layout})
    if str(place) == POPULATION:
        data = trained.config.data
    own = replace(trained, config=trained.config.model_copy(update={"data": data}))

    def one(case: Case) -> ComparedVolume:
        if not case.images:
            example = own.example(case)
            return ComparedVolume(case, example.x[0].cpu(), None, example.spacing_mm)
        found = own.preprocessing.prepare(case)
        label = None if found.label is None else found.label[0]
        return ComparedVolume(case, found.x, label, found.spacing_mm)

    return VolumeSet(str(place), cases_of(data), one)


def was_trained_on(seen: Seen, case: Case) -> bool:
    """Whether a case was among the training volumes."""
    names = {case.id, *(path.name.partition(".")[0] for path in case.images.values())}
    found = seen.find(digests=digests(case).values(), patients=[case.patient], names=names)
    return found is not None and found.part == "train"


def check_form(volume: ComparedVolume, real: ComparedVolume, *, of: str, remedy: str) -> None:
    """Raises DataError where a volume has not the channels, voxels or spacing of the real ones."""
    apart = [abs(a / b - 1) for a, b in zip(volume.spacing_mm, real.spacing_mm, strict=True)]
    if volume.x.shape == real.x.shape and max(apart) <= SAME_SPACING:
        return
    raise DataError(
        f"{of}: expected {volume.case.id} with the grid of the real {real.case.id}, "
        f"{_form(real)}, got {_form(volume)}; {remedy}."
    )


def _form(volume: ComparedVolume) -> str:
    c, d, h, w = volume.x.shape
    spacing = " x ".join(f"{s:.3g}" for s in volume.spacing_mm)
    return f"{c} channel{'s' * (c > 1)} of {d} x {h} x {w} voxels of {spacing} mm"
