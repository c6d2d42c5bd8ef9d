"""What is measured of a data set before a configuration is proposed for it."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from volumediff.data.cases import Case
from volumediff.data.content import content_remarks
from volumediff.data.grid import Grid, agree
from volumediff.data.intensity import Intensity, Percentile, Window
from volumediff.data.label_survey import labels_of
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.survey import AUTO, Spec, find_cases, layout_of
from volumediff.data.volume import Volume, read
from volumediff.errors import DataError

__all__ = ["MeasuredCase", "MeasuredSet", "measure"]

NEAR_MM = 10.0  # between the centres of foregrounds that are aligned


@dataclass(frozen=True, eq=False)
class MeasuredCase:
    """One case.

    Arguments:
        case: its files and attributes
        grid: of the first image, with axes along R, A, S
        box: first and last voxel of the foreground of all channels, along the three axes
        foreground_ml: its volume
        ranges: per channel the least, the median and the largest intensity in the foreground
        label_ml: label value -> volume; empty without a label map
    """

    case: Case
    grid: Grid
    box: tuple[tuple[int, int], tuple[int, int], tuple[int, int]]
    foreground_ml: float
    ranges: tuple[tuple[float, float, float], ...]
    label_ml: Mapping[int, float]

    @property
    def size_mm(self) -> tuple[float, float, float]:
        """Sides of the box around the foreground."""
        d, h, w = (
            (last - first + 1) * s
            for (first, last), s in zip(self.box, self.grid.spacing_mm, strict=True)
        )
        return d, h, w

    def corners_mm(self) -> np.ndarray:
        """The two outer corners of the box in RAS millimetres."""
        ends = [[f - 0.5 for f, _ in self.box], [last + 0.5 for _, last in self.box]]
        return np.array([(self.grid.affine @ [*end, 1.0])[:3] for end in ends])


@dataclass(frozen=True, eq=False)
class MeasuredSet:
    """A data set.

    Arguments:
        root: where it is
        layout: as it was asked for
        layout_name: that was found
        channels: names of the images that are used, in their order
        cases: all of them
        ct: whether intensities are Hounsfield units
    """

    root: Path
    layout: Spec
    layout_name: str
    channels: tuple[str, ...]
    cases: tuple[MeasuredCase, ...]
    ct: bool

    @property
    def patients(self) -> int:
        """Number of patients."""
        return len({c.case.patient for c in self.cases})

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Median along R, A, S."""
        d, h, w = np.median([c.grid.spacing_mm for c in self.cases], axis=0).tolist()
        return d, h, w

    @property
    def aligned(self) -> bool:
        """Whether all volumes lie on one grid, with their foregrounds at one place."""
        if (self.root / "prepared.json").is_file():
            return True
        first, *others = self.cases
        if not others or any(agree(first.grid, other.grid) for other in others):
            return False
        centres = np.array([c.corners_mm().mean(0) for c in self.cases])
        return bool((np.abs(centres - np.median(centres, axis=0)) < NEAR_MM).all())

    def values_of(self, attribute: str) -> Counter[str]:
        """How many cases have each value of an attribute."""
        found = (c.case.attributes.get(attribute) for c in self.cases)
        return Counter(str(value) for value in found if value is not None)

    @property
    def attributes(self) -> list[str]:
        """Names of the attributes that any case has."""
        return sorted({name for c in self.cases for name in c.case.attributes})


def measure(
    root: Path,
    *,
    layout: Spec = AUTO,
    channels: Sequence[str] | None = None,
    policy: ReadPolicy = ReadPolicy(),  # noqa: B008 - frozen
    done: Callable[[int, int], None] = lambda count, total: None,
) -> MeasuredSet:
    """Reads every volume of a data set.

    Arguments:
        root: folder, datalist or table of cases
        layout: as a configuration has it
        channels: images to use; None takes those that every case has
        policy: decisions on ambiguous files
        done: receives how many cases are read, and of how many

    Raises:
        DataError: no case, a file that is refused, no image that every case has, or CT and other
            images together
        UsageError: no such layout
    """
    cases = find_cases(root, layout, channels)
    names = tuple(channels) if channels else _common(root, cases)
    cases = find_cases(root, layout, names)
    found, hounsfield = [], {}
    for number, case in enumerate(cases):
        images = [read(path, policy=policy) for path in case.images.values()]
        hounsfield[case.id] = _looks_like_ct(images)
        rule: Intensity = Window() if hounsfield[case.id] else Percentile()
        found.append(_measured(case, images, Preprocessing(intensity=rule, policy=policy)))
        done(number + 1, len(cases))
    ct = [name for name, yes in hounsfield.items() if yes]
    if 0 < len(ct) < len(cases):
        other = next(name for name in hounsfield if name not in ct)
        raise DataError(
            f"{root}: {len(ct)} of {len(cases)} cases look like CT in Hounsfield units (such as "
            f"{ct[0]}), the others do not (such as {other}); keep one kind in a folder, or name "
            "it in a column of participants.tsv and choose it with data.only."
        )
    one = layout_of(root, layout) if root.is_dir() or layout != AUTO else None
    name = type(one).__module__.rpartition(".")[2] if one is not None else root.suffix[1:]
    return MeasuredSet(root, layout, name, names, tuple(found), bool(ct))


def _common(root: Path, cases: Sequence[Case]) -> tuple[str, ...]:
    """Images that every case has, in the order of the first case.

    Raises:
        DataError: there is none
    """
    shared = [n for n in cases[0].images if all(n in case.images for case in cases)]
    if not shared:
        counts = Counter(name for case in cases for name in case.images)
        listed = ", ".join(f"{name} ({count})" for name, count in counts.most_common())
        raise DataError(
            f"{root}: no image is there in every one of {len(cases)} cases; there are {listed}. "
            "Complete the cases, or move those of another contrast away."
        )
    return tuple(shared)


def _looks_like_ct(images: Sequence[Volume]) -> bool:
    rule = Percentile()
    remarks = [r for i in images for x in i.array for r in content_remarks(x, rule.mask(x), rule)]
    return any(remark.code == "looks_like_ct" for remark in remarks)


def _measured(case: Case, images: Sequence[Volume], native: Preprocessing) -> MeasuredCase:
    """The case as it is in its files: neither resampled nor cropped."""
    first = images[0]
    prepared = native.prepare_volumes(images)
    inside = prepared.foreground[0].numpy()
    if not inside.any():
        raise DataError(f"{first.path}: shows no foreground; check that it is not empty.")
    planes = (inside.any(axis=(1, 2)), inside.any(axis=(0, 2)), inside.any(axis=(0, 1)))
    ends = [np.flatnonzero(each) for each in planes]
    d, h, w = ((int(found[0]), int(found[-1])) for found in ends)
    own = [native.intensity.mask(x) for image in images for x in image.array]
    values = [x[m] for x, m in zip((x for i in images for x in i.array), own, strict=True)]
    ranges = tuple(tuple(np.percentile(v, [0, 50, 100]).tolist()) for v in values if v.size)
    labels = labels_of(case, native, left=False)
    voxel_ml = float(np.prod(first.spacing_mm)) / 1000
    label_ml: dict[int, float] = {}
    if labels is not None:
        own_ml = float(np.prod(labels.spacing_mm)) / 1000
        label_ml = {v: n * own_ml for v, n in sorted(labels.voxels.items()) if v}
    return MeasuredCase(
        case, first.grid, (d, h, w), float(inside.sum()) * voxel_ml, ranges, label_ml
    )
