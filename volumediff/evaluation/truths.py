"""Truth of cases: labels or boxes of a data set in any layout, or a folder of masks alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from volumediff.data.cases import Box, Contour, Sphere, patient_of, safe_id
from volumediff.data.contours import filled_contours
from volumediff.data.files import stem_of
from volumediff.data.layouts._base import ANYTHING
from volumediff.data.layouts._roles import ASSOCIATED_WORD, LABEL_WORDS, in_order, split_reader
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.readers import majority
from volumediff.data.survey import AUTO, Spec, layout_of, survey_cases
from volumediff.data.truth import filled, label_map, only
from volumediff.data.volume import Volume, check_grids
from volumediff.errors import DataError
from volumediff.metrics.boxes import Boxes
from volumediff.metrics.boxes import boxes as boxes_of
from volumediff.outputs.case_files import written
from volumediff.outputs.export import MAP
from volumediff.outputs.segmentation_files import DSEG
from volumediff.outputs.sidecar import read_facts

__all__ = ["LabelMaps", "Marks", "Truth", "find_truths", "recorded_policy"]


@dataclass(frozen=True, eq=False)
class Marks:
    """A truth on the grid of a map.

    Arguments:
        lesion: voxels of the lesions, or of the boxes
        ignored: voxels that are neither lesion nor healthy; none of them is lesion
        boxes: around the lesions, or those of the truth
    """

    lesion: Bool[Tensor, "d h w"]
    ignored: Bool[Tensor, "d h w"]
    boxes: Boxes


@dataclass(frozen=True, eq=False)
class LabelMaps:
    """What every voxel is, on the grid of a segmentation.

    Arguments:
        consensus: label values; of several readers, what most of them say
        readers: label values of each of several readers; None where there is one truth
        ignored: voxels that count neither for nor against a segmentation
    """

    consensus: UInt8[np.ndarray, "d h w"]
    readers: UInt8[np.ndarray, "r d h w"] | None
    ignored: Bool[np.ndarray, "d h w"]


@dataclass(frozen=True)
class Truth:
    """A mask or boxes, and whose they are.

    Arguments:
        case, patient: as in the data set
        path: of the mask; an empty mask is a healthy volume; None for boxes, and where several
            readers have marked and there is no consensus but their majority
        attributes: of the case
        image: its first image, if there is one
        lesions, ignored, boxes: as in the data set
        images: all of its images
        associated: second label file, of associated changes
        readers: masks of several readers by name
        contours: what several readers drew, in place of masks
        spheres: what the boxes are around
        names: label value -> what it stands for, where the data set says so
        policy: decisions on ambiguous files
        told: whether the patient was named for this evaluation, above what results say
    """

    case: str
    patient: str
    path: Path | None
    attributes: Mapping[str, str | float]
    image: Path | None = None
    lesions: tuple[int, ...] | None = None
    ignored: tuple[int, ...] = ()
    boxes: tuple[Box, ...] = ()
    images: tuple[Path, ...] = ()
    associated: Path | None = None
    readers: Mapping[str, Path] = field(default_factory=dict)
    names: Mapping[int, str] = field(default_factory=dict)
    policy: ReadPolicy = field(default_factory=ReadPolicy)
    contours: Mapping[str, tuple[Contour, ...]] = field(default_factory=dict)
    spheres: tuple[Sphere, ...] = ()
    told: bool = False

    def beside(self, sidecar: Mapping[str, Any]) -> "Truth":
        """The same with the image that the first channel of a map was made of, if it is there.

        Arguments:
            sidecar: content of the map's JSON
        """
        inputs = sidecar.get("inputs") or {}
        first = next((entry["file"] for entry in inputs.values()), None)
        image = next((path for path in self.images if path.name == first), self.image)
        return replace(self, image=image)

    def patient_in(self, sidecar: Mapping[str, Any]) -> str:
        """Whose the case is: where the data set here does not say, as the results know it.

        Two cases of one patient are else two patients, and intervals come out too narrow.

        Arguments:
            sidecar: content of the JSON of a result
        """
        if self.told or self.patient != self.case:
            return self.patient
        return str(sidecar.get("patient") or self.patient)

    def marks(self, like: Volume) -> Marks:
        """What is marked, on the grid of a map.

        Raises:
            DataError: mask or boxes lie on another grid
        """
        if self.path is None and not self.readers:
            found = Boxes(np.array(self.boxes, np.int64).reshape(-1, 6), np.ones(len(self.boxes)))
            lesion = torch.from_numpy(filled(self.boxes, like, self.spheres).array[0] > 0)
            return Marks(lesion, self._associated(like) & ~lesion, found)
        label = self._label(like)
        lesion = torch.from_numpy(only(label, self.lesions, self.ignored).array[0] > 0)
        ignored = torch.from_numpy(np.isin(label.array[0], self.ignored))
        return Marks(lesion, (ignored | self._associated(like)) & ~lesion, boxes_of(lesion))

    def label_maps(self, like: Volume) -> LabelMaps:
        """The labels themselves, every value of them, on the grid of a segmentation.

        Raises:
            DataError: the truth is boxes, or lies on another grid
        """
        if self.path is None and not self.readers and not self.contours:
            raise DataError(
                f"{self.case}: expected a label map to compare a segmentation with, got boxes."
            )
        label = self._label(like).array[0].astype(np.uint8)
        readers = [volume.array for volume in self._opinions(like)]
        ignored = np.isin(label, self.ignored) | self._associated(like).numpy()
        return LabelMaps(
            label, np.concatenate(readers).astype(np.uint8) if readers else None, ignored
        )

    def _label(self, like: Volume) -> Volume:
        """The mask, or what most readers say."""
        maps = self._opinions(like) if self.path is None else [self._on(like, self.path)]
        return replace(maps[0], array=majority(np.concatenate([v.array for v in maps])))

    def _opinions(self, like: Volume) -> list[Volume]:
        """The label maps of the readers."""
        if self.readers:
            return [self._on(like, path) for path in self.readers.values()]
        return [filled_contours(drawn, like) for drawn in self.contours.values()]

    def _associated(self, like: Volume) -> Bool[Tensor, "d h w"]:
        if self.associated is None:
            return torch.zeros(like.array.shape[1:], dtype=torch.bool)
        return torch.from_numpy(self._on(like, self.associated).array[0] > 0)

    def _on(self, like: Volume, path: Path) -> Volume:
        label = label_map(path, self.policy)
        check_grids(like, label)
        return label


def recorded_policy(folders: Sequence[Path]) -> ReadPolicy:
    """The decisions on ambiguous files that results say they were made with; those of the program
    where none say so.

    Raises:
        DataError: a sidecar that is damaged
    """
    for folder in folders:
        for path in written(folder, f"*_{MAP}.json") + written(folder, f"*_{DSEG}.json"):
            return ReadPolicy(**read_facts(path).get("read_policy", {}))
    return ReadPolicy()


def find_truths(
    root: Path | str, layout: Spec = AUTO, policy: ReadPolicy | None = None
) -> dict[str, Truth]:
    """Truth by every name that an output may have: the case, or the file that was given.

    Arguments:
        root: a data set with labels or boxes, or a folder of masks
        layout: of the data set
        policy: decisions on ambiguous files

    Raises:
        DataError: no truth at all
    """
    root = Path(root)
    if not root.exists():
        raise DataError(f"truth {root}: expected a data set with labels, nothing is there.")
    found: dict[str, Truth] = {}
    cases = survey_cases(root, layout)[0] if _is_data_set(root, layout) else []
    owners: dict[str, set[str]] = {}
    for case in cases:
        if not case.labelled and case.boxes is None:
            continue
        truth = Truth(
            case.id,
            case.patient,
            case.label,
            case.attributes,
            next(iter(case.images.values())),
            case.lesions,
            case.ignored,
            case.boxes or (),
            tuple(case.images.values()),
            case.associated,
            case.labels,
            case.names,
            policy or ReadPolicy(),
            case.contours,
            case.spheres,
        )
        found[case.id] = truth
        for path in case.images.values():
            name = safe_id(stem_of(path))
            owners.setdefault(name, set()).add(case.id)
            found.setdefault(name, truth)
    for name, of in owners.items():
        # one name for files of several cases, such as FLAIR.nii.gz in a folder per case
        if len(of) > 1 and found[name].case != name:
            del found[name]
    if found:
        return found
    readers: dict[str, dict[str, Path]] = {}
    for path in sorted(root.glob("*.nii*")) if root.is_dir() else ():
        stem, reader = split_reader(stem_of(path))
        name, _, word = stem.rpartition("_")
        if name and word.lower() in LABEL_WORDS and reader is not None:
            readers.setdefault(name, {})[reader] = path
        elif name and word.lower() in LABEL_WORDS:
            beside = path.with_name(path.name.replace(f"_{word}.", f"_{ASSOCIATED_WORD}."))
            found[safe_id(name)] = Truth(
                safe_id(name),
                patient_of(name),
                path,
                {},
                associated=beside if beside.is_file() else None,
            )
    for name, paths in readers.items():
        alone = Truth(safe_id(name), patient_of(name), None, {})
        found[alone.case] = replace(found.get(alone.case, alone), readers=in_order(paths))
    if not found:
        raise DataError(
            f"truth {root}: found no masks; expected a data set with labels or boxes, or files "
            "named <case>_mask.nii.gz."
        )
    return found


def _is_data_set(root: Path, layout: Spec) -> bool:
    """Whether there are cases to look for: a folder without volumes may still hold masks."""
    plain = layout_of(root, layout).rank == ANYTHING
    return not plain or any(root.rglob("*.nii*")) or layout != AUTO
