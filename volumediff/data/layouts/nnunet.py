"""nnU-Net raw: numbered channels, and a description that names them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from volumediff.data.cases import Case, Problem, patient_of
from volumediff.data.layouts._base import CONVENTION, Found, Layout
from volumediff.data.layouts._descriptions import (
    channel_names,
    described_by,
    label_meanings,
    read_object,
    regions_note,
)
from volumediff.data.layouts._files import VOLUME, stem, volumes
from volumediff.data.layouts.datalist import lists_cases
from volumediff.errors import DataError

__all__ = ["NNUNet", "numbered"]

PARTS = (("Tr", "train"), ("Ts", "test"))
NUMBERED = re.compile(r"(.+)_(\d{4})")


@dataclass(frozen=True)
class NNUNet(Layout):
    """`imagesTr/<case>_0000.nii.gz`, `labelsTr/<case>.nii.gz`, `dataset.json`; Ts is for tests.

    Its `labels` name the values; the one called `ignore` is neither hit nor miss, and regions are
    read as the values that they consist of. Names cannot say which cases are one patient: see
    `volumediff.data.patients`.
    """

    rank: ClassVar[int] = CONVENTION
    tables: ClassVar[tuple[str, ...]] = ("dataset.json",)

    def recognises(self, root: Path) -> bool:
        parts = (root / "imagesTr", root / "imagesTs")
        return any(part.is_dir() for part in parts) and not lists_cases(root)

    def read(self, root: Path) -> Found:
        path = root / "dataset.json"
        info = described_by(read_object(path), path)
        if not VOLUME.search(info.file_ending):
            raise DataError(f"{path}: expected NIfTI, got {info.file_ending}; convert the files.")
        channels, meanings = channel_names(info, path), label_meanings(info, path)
        cases, problems = [], regions_note(meanings)
        for part, split in PARTS:
            images, found = numbered(volumes(root / f"images{part}"), channels)
            labels, left = _labels(volumes(root / f"labels{part}"), images)
            problems += found + left
            doubled = {problem.id for problem in left if problem.severity == "error"}
            cases += [
                Case(
                    case,
                    patient_of(case),
                    files,
                    labels.get(case),
                    {"split": split},
                    ignored=meanings.ignored,
                    names=meanings.names,
                )
                for case, files in images.items()
                if case not in doubled
            ]
        if info.num_training is not None:
            count = sum(case.attributes["split"] == "train" for case in cases)
            if count != info.num_training:
                text = f"says {info.num_training} training cases, {count} are there and complete."
                problems.append(Problem("dataset.json", text, "warning"))
        return cases, problems


def numbered(
    paths: Iterable[Path], channels: Sequence[str]
) -> tuple[dict[str, dict[str, Path]], list[Problem]]:
    """Case -> channel -> file, of files such as `<case>_0000.nii.gz`; and what does not fit.

    Arguments:
        paths: of images
        channels: names in the order of the numbers
    """
    files: dict[str, dict[int, Path]] = defaultdict(dict)
    problems = []
    for path in paths:
        match = NUMBERED.fullmatch(stem(path))
        number = int(match[2]) if match else None
        if match is None or number is None:
            text = f"{path}: expected a channel number such as _0000 at the end; rename it."
            problems.append(Problem(path.name, text, files=(path,)))
        elif number >= len(channels):
            text = (
                f"{path.name}: is channel {number} of {len(channels)} that dataset.json names, "
                "counted from 0; name it there, or take the file away."
            )
            problems.append(Problem(match[1], text, "warning", (path,)))
        elif number in files[match[1]]:
            other = files[match[1]][number].name
            text = f"{path.name} and {other} are both its {channels[number]}; keep one."
            problems.append(Problem(match[1], text, files=(path,)))
        else:
            files[match[1]][number] = path
    complete: dict[str, dict[str, Path]] = {}
    for case, found in files.items():
        lacking = [i for i in range(len(channels)) if i not in found]
        if lacking and found:
            text = f"missing channel '{channels[lacking[0]]}' (_{lacking[0]:04d}); add it."
            problems.append(Problem(case, text, files=tuple(found.values())))
        elif found:
            complete[case] = {name: found[i] for i, name in enumerate(channels)}
    return complete, problems


def _labels(
    paths: Sequence[Path], images: Mapping[str, object]
) -> tuple[dict[str, Path], list[Problem]]:
    """Case -> label, whatever its ending and its upper and lower case; and those of no case."""
    alike: dict[str, list[str]] = defaultdict(list)
    for case in images:
        alike[case.lower()].append(case)
    found: dict[str, Path] = {}
    problems = []
    for path in paths:
        name = stem(path)
        near = alike.get(name.lower(), [])
        case = name if name in images else near[0] if len(near) == 1 else None
        if case is None:
            text = f"{path.name}: is the label of no case"
            shorter = NUMBERED.fullmatch(name)
            if shorter and shorter[1] in images:
                text += "; labels have no channel number, rename it to "
                text += path.name.replace(name, shorter[1]) + "."
            else:
                text += ", add the image or remove the label."
            problems.append(Problem(name, text, "warning", (path,)))
        elif case in found:
            text = f"{path.name} and {found[case].name} are both its label; keep one."
            problems.append(Problem(case, text, files=(path,)))
        else:
            found[case] = path
    return found, problems
