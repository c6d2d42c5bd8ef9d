"""MONAI datalists, and the `dataset.json` of the Medical Segmentation Decathlon."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.data.layouts._base import CONVENTION, Found, Layout
from volumediff.data.layouts._descriptions import (
    DatasetDescription,
    LabelMeanings,
    channel_names,
    described_by,
    label_meanings,
    read_json,
    regions_note,
)
from volumediff.data.layouts._files import below, stem
from volumediff.errors import DataError

__all__ = ["Datalist", "lists_cases"]

SECTIONS = {"training": "train", "validation": "validation", "test": "test", "testing": "test"}
# Truth that other programs write into datalists, which is no label map.
POINTS = ("box", "boxes", "keypoint", "keypoints", "landmarks", "points", "centroids")
KNOWN = frozenset(("image", "label", "id", "patient", "subject", *POINTS))


def lists_cases(root: Path) -> bool:
    """Whether `dataset.json` lists the cases; that of nnU-Net leaves them to the folders."""
    description = root / "dataset.json"
    if not description.is_file():
        return False
    content = read_json(description)
    training = content.get("training") if isinstance(content, dict) else content
    channels = any((root / "imagesTr").glob("*_0000.*"))
    return isinstance(training, list) and bool(training) and not channels


@dataclass(frozen=True)
class Datalist(Layout):
    """A MONAI datalist: `{"training": [{"image": ..., "label": ...}], ...}`, or the list alone.

    Paths are relative to the JSON's folder and must stay below it, also through links. An entry
    without `id` is called as its first image, or as the folders above it where several images have
    one name. The label of several readers is a list of files, or an object `{"reader": file}`.
    """

    rank: ClassVar[int] = CONVENTION
    tables: ClassVar[tuple[str, ...]] = ("dataset.json",)

    def recognises(self, root: Path) -> bool:
        return root.suffix.lower() == ".json" if root.is_file() else lists_cases(root)

    def read(self, root: Path) -> Found:
        path = root / "dataset.json" if root.is_dir() else root
        content = read_json(path)
        content = {"training": content} if isinstance(content, list) else content
        if not isinstance(content, dict):
            raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}.")
        info = described_by(content, path)
        meanings = label_meanings(info, path)
        entries: list[tuple[str, str, Any]] = []
        for section, split in SECTIONS.items():
            listed = content.get(section, [])
            if not isinstance(listed, list):
                raise DataError(f"{path}: expected a list under '{section}'.")
            entries += [(f"{section}[{i}]", split, entry) for i, entry in enumerate(listed)]
        names = _ids([entry for _, _, entry in entries])
        cases, problems = [], regions_note(meanings)
        for (where, split, entry), name in zip(entries, names, strict=True):
            try:
                case = _entry(entry, path, info, meanings, name)
                cases.append(replace(case, attributes={"split": split, **case.attributes}))
            except DataError as error:
                problems.append(Problem(where, str(error)))
        return cases, problems


def _ids(entries: Sequence[Any]) -> list[str]:
    """A name for every entry: that of its first image, with as many of the folders above it as
    keep different images apart; where all images are called alike, that of the folders alone."""
    paths = [_first(entry) for entry in entries]
    different = set(paths)
    alike = len(different) > 1 and len({path.name for path in different}) == 1
    deepest = max((len(path.parts) for path in different), default=1)
    for depth in range(2 if alike else 1, deepest + 1):
        if len({_case_name(path, depth, alike=alike) for path in different}) == len(different):
            return [_case_name(path, depth, alike=alike) for path in paths]
    return [_case_name(path, deepest, alike=False) for path in paths]


def _first(entry: Any) -> PurePosixPath:
    """The first image of an entry; an empty path where there is none."""
    image = entry.get("image") if isinstance(entry, dict) else entry
    several = isinstance(image, list) and len(image) > 1
    image = image[0] if isinstance(image, list) and image else image
    path = PurePosixPath(image.replace("\\", "/") if isinstance(image, str) else "")
    name = stem(Path(path.name))
    return path.with_name(re.sub(r"_0000$", "", name) if several else name) if name else path


def _case_name(path: PurePosixPath, depth: int, *, alike: bool) -> str:
    """The last parts of a path, without the last one where all are called alike."""
    parts = [part for part in path.parts if part not in ("/", "..")][-depth:]
    return "_".join(parts[:-1] if alike else parts)


def _entry(
    entry: Any, path: Path, info: DatasetDescription, meanings: LabelMeanings, name: str
) -> Case:
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or "image" not in entry:
        raise DataError(f"expected a mapping with the key 'image', got {entry!r:.80}.")
    if points := [key for key in POINTS if key in entry]:
        raise DataError(
            f"'{points[0]}' is not read, truth is expected as a label map under 'label'; convert "
            f"it, or take '{points[0]}' out."
        )
    base = path.parent
    files = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    if not files:
        raise DataError("expected a file under 'image', got an empty list.")
    paths = [below(base, f) for f in files]
    label, readers = _labels(base, entry.get("label"))
    channels = ["image"]
    if len(paths) > 1:
        given = channel_names(info, path) if info.channel_names or info.modality else []
        channels = [given[i] if i < len(given) else f"image_{i}" for i in range(len(paths))]
    case = _word(entry, "id", name)
    patient = _word(entry, "patient", _word(entry, "subject", patient_of(case)))
    return Case(
        case,
        patient,
        dict(zip(channels, paths, strict=True)),
        label,
        _attributes(entry),
        ignored=meanings.ignored,
        labels=readers,
        names=meanings.names,
    )


def _word(entry: Mapping[str, Any], key: str, otherwise: str) -> str:
    value = entry.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise DataError(f"expected text or a number under '{key}', got {value!r:.60}.")
    return str(value)


def _attributes(entry: Mapping[str, Any]) -> dict[str, str | float]:
    found: dict[str, str | float] = {}
    for key, value in entry.items():
        if key not in KNOWN and isinstance(value, str | int | float):
            try:
                found[key] = value if isinstance(value, str) else float(value)
            except OverflowError:
                raise DataError(f"{key!r} is a number without end; correct the entry.") from None
    return found


def _labels(base: Path, given: Any) -> tuple[Path | None, dict[str, Path]]:
    """The label of an entry, or those of its readers; a list numbers them from 1."""
    if not given:
        return None, {}
    if isinstance(given, list) and len(given) == 1:
        given = given[0]
    if isinstance(given, list):
        given = {str(i): name for i, name in enumerate(given, start=1)}
    if isinstance(given, dict):
        return None, {str(reader): below(base, name) for reader, name in given.items()}
    return below(base, given), {}
