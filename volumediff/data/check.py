"""Checks of every volume of a data set: one line per problem or remark, one summary per file.

A file that is refused gives an error row and never stops the others.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from volumediff.data.cases import Case, Problem
from volumediff.data.content import content_remarks, cover_remark
from volumediff.data.grid import agree
from volumediff.data.intensity import Intensity, Percentile
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.readers import agreement
from volumediff.data.survey import AUTO, Spec, survey_sources
from volumediff.data.truth import only
from volumediff.data.volume import Volume, check_grids, read
from volumediff.errors import DataError
from volumediff.storage.digests import sha256

__all__ = ["CheckLine", "Checking", "check", "has_errors"]

# Spacings of one channel that differ by more than this factor come from different protocols.
SPACING_FACTOR = 1.5


@dataclass(frozen=True)
class CheckLine:
    """One line of the table.

    Arguments:
        case: id, or what else the line is about
        file: name
        severity: `error` is a file that cannot be used
        code: `summary` for the line that describes a readable file
        message: one sentence
        files: in no case for this reason
    """

    case: str
    file: str
    severity: Literal["info", "warning", "error"]
    code: str
    message: str
    files: tuple[Path, ...] = ()


@dataclass(frozen=True, eq=False)
class Checking:
    """The check of a data set, case by case: what `lines` gives is forgotten.

    Arguments:
        cases: usable ones
        problems: what is not used, and why
        policy: decisions on ambiguous files
        intensity: the rule of normalization whose foreground is looked at
    """

    cases: Sequence[Case]
    problems: Sequence[Problem]
    policy: ReadPolicy = field(default_factory=ReadPolicy)
    intensity: Intensity = field(default_factory=Percentile)

    def lines(self) -> Iterator[list[CheckLine]]:
        """First what is not used, then the lines of each case, last those of the whole set."""
        yield [
            CheckLine(
                p.id,
                "",
                p.severity,
                "case" if p.severity == "error" or not p.files else "left_out",
                p.message,
                p.files,
            )
            for p in self.problems
        ]
        yield from _checked(self.cases, self.policy, self.intensity)


def check(
    sources: Sequence[Path | str],
    *,
    layout: Spec = AUTO,
    channels: Sequence[str] | None = None,
    policy: ReadPolicy = ReadPolicy(),  # noqa: B008 (frozen)
) -> list[CheckLine]:
    """Reads every file of every case and reports what is wrong or noteworthy.

    Arguments:
        sources: data sets and volumes
        layout, channels: as for `find_cases`
        policy: decisions on ambiguous files

    Raises:
        DataError: there is no case at all
        UsageError: two cases of one id in two sources
    """
    checking = Checking(*survey_sources(sources, layout, channels), policy)
    return [line for lines in checking.lines() for line in lines]


def _checked(
    cases: Sequence[Case], policy: ReadPolicy, intensity: Intensity
) -> Iterator[list[CheckLine]]:
    spacings: dict[str, dict[str, np.ndarray]] = defaultdict(dict)
    content: dict[str, list[Case]] = defaultdict(list)
    for case in cases:
        rows: list[CheckLine] = []
        volumes = _check_case(case, policy, intensity, rows)
        images = {name: volume for name, volume in volumes.items() if volume.kind == "image"}
        for name, volume in images.items():
            spacings[name][case.id] = np.array(volume.spacing_mm)
        if images:
            first = next(iter(images.values()))
            content[sha256(first.array.tobytes())].append(case)
        del volumes, images
        yield rows
    yield [*_check_spacings(spacings), *_check_copies(content), *_check_channels(cases)]


def has_errors(rows: Sequence[CheckLine]) -> bool:
    """Whether a row says that a file cannot be used."""
    return any(row.severity == "error" for row in rows)


def _check_case(
    case: Case, policy: ReadPolicy, intensity: Intensity, rows: list[CheckLine]
) -> dict[str, Volume]:
    """The volumes that could be read, by channel and by what the labels are called."""
    volumes: dict[str, Volume] = {}
    labels = dict(case.label_files)
    if case.associated is not None:
        labels["associated"] = case.associated
    for name, path in [*case.images.items(), *labels.items()]:
        kind = "label" if path in labels.values() else "image"
        try:
            volume = read(path, kind=kind, policy=policy)
        except DataError as error:
            rows.append(CheckLine(case.id, path.name, "error", "refused", str(error)))
            continue
        volumes[name] = volume
        rows.append(CheckLine(case.id, path.name, "info", "summary", _summary(volume)))
        rows += [
            CheckLine(case.id, path.name, f.severity, f.code, f.message)
            for f in volume.findings
            # that one of several readers marks nothing is an opinion, and no fault
            if not (f.code == "empty_mask" and path in case.labels.values())
        ]
    images = [v for n, v in volumes.items() if n not in labels]
    rows += _check_content(case, images, [volumes[n] for n in labels if n in volumes], intensity)
    rows += _check_readers(case, volumes)
    for name in labels if images else ():
        try:
            check_grids(images[0], volumes.get(name, images[0]))
        except DataError as error:
            rows.append(CheckLine(case.id, labels[name].name, "error", "grid", str(error)))
    for other in images[1:]:
        difference = agree(images[0].grid, other.grid)
        if difference:
            text = f"other grid than {images[0].path.name}: {difference}; it will be resampled"
            rows.append(CheckLine(case.id, other.path.name, "warning", "grid", text))
        elif other.native.axes != images[0].native.axes:
            text = f"axes {other.native.axes}, {images[0].path.name} has {images[0].native.axes}"
            rows.append(
                CheckLine(case.id, other.path.name, "warning", "orientation_differs", text)
            )
    return volumes


def _check_content(
    case: Case, images: Sequence[Volume], labels: Sequence[Volume], intensity: Intensity
) -> list[CheckLine]:
    """What the images show, and labels that cover much of it."""
    rows = []
    for image in images:
        masks = [intensity.mask(x) for x in image.array]
        for x, mask in zip(image.array, masks, strict=True):
            rows += [
                CheckLine(case.id, image.path.name, r.severity, r.code, r.message)
                for r in content_remarks(x, mask, intensity)
            ]
        for label in labels if image is images[0] else ():
            lesions = only(label, case.lesions, case.ignored).array[0] > 0
            remark = cover_remark(lesions, masks[0]) if lesions.shape == masks[0].shape else None
            if remark is not None:
                text, code = remark.message, remark.code
                rows.append(CheckLine(case.id, label.path.name, remark.severity, code, text))
    return rows


def _check_readers(case: Case, volumes: Mapping[str, Volume]) -> list[CheckLine]:
    """How much the readers of a case agree."""
    maps = [volumes[f"reader {n}"] for n in case.labels if f"reader {n}" in volumes]
    arrays = [volume.array for volume in maps]
    if len(arrays) < 2 or len({a.shape for a in arrays}) > 1:
        return []
    share = agreement(np.concatenate(arrays))
    empty = sum(not a.any() for a in arrays)
    text = f"{len(arrays)} readers, mean IoU of their pairs {share:.3f}"
    text += f"; {empty} of them marked nothing" if empty else ""
    return [CheckLine(case.id, "", "info", "readers", text)]


def _summary(volume: Volume) -> str:
    shape = "x".join(map(str, volume.native.shape))
    spacing = "/".join(f"{s:.4g}" for s in volume.native.spacing_mm)
    text = f"{shape} {volume.native.axes}, {spacing} mm"
    if volume.array.shape[0] > 1:
        text += f", {volume.array.shape[0]} channels"
    if volume.kind == "image":
        low, middle, high = np.percentile(volume.array, [0, 50, 100]).tolist()
        return f"{text}, {low:.4g} to {high:.4g}, median {middle:.4g}"
    millilitres = float(np.prod(volume.spacing_mm)) / 1000
    counts = np.bincount(volume.array.ravel(), minlength=256)
    found = [f"{v}: {counts[v] * millilitres:.4g} ml" for v in np.flatnonzero(counts) if v]
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"{text}, labels {', '.join(found[:8]) or 'none'}{more}"


def _check_spacings(spacings: dict[str, dict[str, np.ndarray]]) -> list[CheckLine]:
    rows = []
    for name, by_case in spacings.items():
        usual = np.median(list(by_case.values()), axis=0)
        for case, spacing in by_case.items():
            factor = float(np.exp(np.abs(np.log(spacing / usual)).max()))
            if factor > SPACING_FACTOR:
                text = f"{name}: spacing is {factor:.3g} times off the median of the data set"
                rows.append(CheckLine(case, "", "warning", "spacing_outlier", text))
    return rows


def _check_copies(content: dict[str, list[Case]]) -> list[CheckLine]:
    rows = []
    for same in content.values():
        for case in same[1:]:
            if case.patient != same[0].patient:
                text = f"same voxels as case {same[0].id}: one patient under two names leaks"
                rows.append(CheckLine(case.id, "", "warning", "copy", text))
    return rows


def _check_channels(cases: Sequence[Case]) -> list[CheckLine]:
    every = sorted({name for case in cases for name in case.images})
    rows = []
    for case in cases:
        missing = [name for name in every if name not in case.images]
        if missing:
            text = f"has no {', '.join(missing)}; choose channels that every case has"
            rows.append(CheckLine(case.id, "", "info", "channels_differ", text))
    return rows
