"""MONAI datalists, and the `dataset.json` of the Medical Segmentation Decathlon."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.data.layouts._base import CONVENTION, Found, Layout
from volumediff.data.layouts._files import below, label_names, read_json, stem
from volumediff.errors import DataError

__all__ = ["Datalist", "lists_cases"]


def lists_cases(root: Path) -> bool:
    """Whether `dataset.json` lists the cases; that of nnU-Net leaves them to the folders."""
    description = root / "dataset.json"
    if not description.is_file():
        return False
    training = read_json(description).get("training")
    channels = any((root / "imagesTr").glob("*_0000.*"))
    return isinstance(training, list) and bool(training) and not channels


@dataclass(frozen=True)
class Datalist(Layout):
    """A MONAI datalist: `{"training": [{"image": ..., "label": ...}], ...}`.

    Paths are relative to the JSON's folder and must stay below it, also through links. The label
    of several readers is a list of files, or an object `{"reader": file}`.
    """

    rank: ClassVar[int] = CONVENTION

    def recognises(self, root: Path) -> bool:
        return root.suffix.lower() == ".json" if root.is_file() else lists_cases(root)

    def read(self, root: Path) -> Found:
        path = root / "dataset.json" if root.is_dir() else root
        info, base = read_json(path), path.parent
        names = info.get("channel_names") or info.get("modality") or {}
        if not isinstance(names, dict):
            raise DataError(
                f"{path}: expected an object under 'channel_names', got {names!r:.60}."
            )
        sections = (("training", "train"), ("validation", "validation"), ("test", "test"))
        sections += (("testing", "test"),)
        cases, problems, meanings = [], [], label_names(info)
        for section, split in sections:
            entries = info.get(section, [])
            if not isinstance(entries, list):
                raise DataError(f"{path}: expected a list under '{section}'.")
            for number, entry in enumerate(entries):
                try:
                    case = _entry(entry, base, names, split)
                    cases.append(replace(case, names=meanings))
                except DataError as error:
                    problems.append(Problem(f"{section}[{number}]", str(error)))
        return cases, problems


def _entry(entry: Any, base: Path, names: dict[str, str], split: str) -> Case:
    entry = {"image": entry} if isinstance(entry, str) else entry
    if not isinstance(entry, dict) or "image" not in entry:
        raise DataError(f"expected a mapping with the key 'image', got {entry!r}.")
    files = entry["image"] if isinstance(entry["image"], list) else [entry["image"]]
    paths = [below(base, f) for f in files]
    label, readers = _labels(base, entry.get("label"))
    if len(paths) == 1:
        channels = ["image"]
    else:
        channels = [str(names.get(str(i), f"image_{i}")) for i in range(len(paths))]
    name = stem(paths[0])
    name = re.sub(r"_0000$", "", name) if len(paths) > 1 else name
    case = str(entry.get("id", name))
    patient = str(entry.get("patient", entry.get("subject", patient_of(case))))
    known = {"image", "label", "id", "patient", "subject"}
    attributes: dict[str, str | float] = {"split": split}
    for key, value in entry.items():
        if key not in known and isinstance(value, str | int | float):
            try:
                attributes[key] = value if isinstance(value, str) else float(value)
            except OverflowError:
                raise DataError(f"{key!r} is a number without end; correct the entry.") from None
    images = dict(zip(channels, paths, strict=True))
    return Case(case, patient, images, label, attributes, labels=readers)


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
