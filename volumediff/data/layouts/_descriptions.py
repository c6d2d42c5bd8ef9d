"""What the JSON descriptions of nnU-Net, the Decathlon and MONAI say, checked before it is used.

They are other people's files: a value of another type, two channels of one name or a label that is
no number gives one line with the file and the key.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StrictInt, StrictStr, ValidationError

from volumediff.data.cases import Problem
from volumediff.errors import DataError

__all__ = [
    "DatasetDescription",
    "LabelMeanings",
    "channel_names",
    "described_by",
    "label_meanings",
    "read_json",
    "read_object",
    "regions_note",
]

IGNORE = "ignore"
MOST = 255

ChannelNames = dict[StrictStr, StrictStr | StrictInt] | list[StrictStr]
Value = StrictInt | StrictStr


class DatasetDescription(BaseModel):
    """The keys of a `dataset.json` that are read; there may be any others.

    `labels` are `{"tumour": 1}` or lists of values (regions) for nnU-Net, and `{"1": "tumour"}`
    for the Decathlon and earlier versions of nnU-Net.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    channel_names: ChannelNames | None = None
    modality: ChannelNames | StrictStr | None = None
    labels: dict[StrictStr, Value | list[StrictInt]] | list[StrictStr] | None = None
    regions_class_order: list[StrictInt] | None = None
    file_ending: StrictStr = ".nii.gz"
    num_training: Annotated[StrictInt | None, Field(alias="numTraining")] = None


@dataclass(frozen=True)
class LabelMeanings:
    """What the values of a label map stand for.

    Arguments:
        names: value -> name, without the background
        ignored: values that are neither lesion nor healthy
        regions: name -> the values that it consists of
        written: label that nnU-Net writes for a region -> the values that the region consists of,
            later ones over earlier ones; empty without regions
    """

    names: Mapping[int, str]
    ignored: tuple[int, ...] = ()
    regions: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    written: Mapping[int, tuple[int, ...]] = field(default_factory=dict)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        DataError: not there, or no JSON
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise DataError(f"{path}: expected a data set description, it is not there.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({error}).") from error


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        DataError: not there, no JSON, no object
    """
    content = read_json(path)
    if not isinstance(content, dict):
        raise DataError(f"{path}: expected a JSON object, got {type(content).__name__}.")
    return content


def described_by(content: Mapping[str, Any], path: Path) -> DatasetDescription:
    """The description in an object.

    Raises:
        DataError: a value of another type
    """
    try:
        return DatasetDescription.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0])
        example = {
            "labels": '{"background": 0, "tumour": 1}',
            "regions_class_order": "[1, 2]",
            "file_ending": '".nii.gz"',
            "numTraining": "10",
        }.get(key, '{"0": "T1w"}')
        got = repr(content.get(key))
        raise DataError(f"{path}: expected '{key}' such as {example}, got {got:.60}.") from None


def channel_names(description: DatasetDescription, path: Path) -> list[str]:
    """The names of the channels, in the order of the numbers _0000, _0001, ... in file names.

    Keys that are 0, 1, ... say the number; of all others the order alone counts, as for nnU-Net
    itself. Names are those of normalization schemes at times, such that several channels may have
    one name: then they are numbered, or called as the keys are, if those are words.

    Raises:
        DataError: no channel
    """
    given = description.channel_names or description.modality
    if isinstance(given, str):
        given = [given]
    if not given:
        raise DataError(f'{path}: expected \'channel_names\' such as {{"0": "T1w"}}, got none.')
    if isinstance(given, list):
        return _apart(given, None)
    keys, values = list(given), list(given.values())
    if all(isinstance(value, int) for value in values):  # {"T1": 0, "T2": 1}
        keys, values = zip(*sorted(zip(map(str, values), keys, strict=True)), strict=True)
    names = [str(value) for value in values]
    if sorted(keys) == sorted(map(str, range(len(keys)))):
        order = sorted(range(len(keys)), key=lambda i: int(keys[i]))
        return _apart([names[i] for i in order], None)
    return _apart(names, None if any(k.isdecimal() for k in keys) else list(keys))


def label_meanings(description: DatasetDescription, path: Path) -> LabelMeanings:
    """What the label values stand for.

    A value that several regions have is called as the smallest of them: of whole tumour (1, 2, 3),
    core (2, 3) and enhancing tumour (3), 3 is enhancing tumour.

    Raises:
        DataError: a value that is no label
    """
    labels = description.labels or {}
    if isinstance(labels, list):  # ["background", "tumour"]
        labels = {str(value): name for value, name in enumerate(labels)}
    values: dict[str, tuple[int, ...]] = {}
    regions: dict[str, tuple[int, ...]] = {}
    for key, given in labels.items():
        if isinstance(given, str) and key.isdecimal():
            name, found = given, (int(key),)
        elif isinstance(given, str):
            name, found = key, (int(given),) if given.isdecimal() else ()
        else:
            name, found = key, tuple(given) if isinstance(given, list) else (given,)
        if not found or not all(0 <= value <= MOST for value in found):
            raise DataError(
                f"{path}: 'labels': expected values from 0 to {MOST} for {name!r}, got {given!r}."
            )
        values[name] = found
        if isinstance(given, list) and len(found) > 1:
            regions[name] = found
    ignored = next((v for n, v in values.items() if n.strip().lower() == IGNORE), ())
    names: dict[int, str] = {}
    for name, found in sorted(values.items(), key=lambda item: -len(item[1])):
        names |= {value: name for value in found if value}
    written = _written(description, values, path) if regions else {}
    return LabelMeanings(dict(sorted(names.items())), ignored, regions, written)


def _written(
    description: DatasetDescription, values: Mapping[str, tuple[int, ...]], path: Path
) -> dict[int, tuple[int, ...]]:
    """Label -> values of the region that it is written for, in the order of writing."""
    found = [v for n, v in values.items() if set(v) != {0} and n.strip().lower() != IGNORE]
    order = description.regions_class_order or []
    if len(order) != len(found) or len(set(order)) < len(order):
        raise DataError(
            f"{path}: 'regions_class_order': expected {len(found)} labels that differ, one for "
            f"each region in the order of 'labels', got {order}."
        )
    return dict(zip(order, found, strict=True))


def regions_note(meanings: LabelMeanings) -> list[Problem]:
    """How regions, which overlap, are read."""
    if not meanings.regions:
        return []
    listed = ", ".join(f"{n} = {'+'.join(map(str, v))}" for n, v in meanings.regions.items())
    text = f"regions are read as the label values that they consist of: {listed}."
    number = {value: i for i, value in enumerate(meanings.written, start=1)}
    if {v for found in meanings.written.values() for v in found} <= set(number):
        members = [[number[v] for v in found] for found in meanings.written.values()]
        text += (
            f" To learn regions as nnU-Net does, set recipe.labels={_word(list(number))} and "
            f"recipe.coding={{name: regions, members: {_word(members)}}}."
        )
    return [Problem("dataset.json", text, "info")]


def _word(values: list[Any]) -> str:
    """A list as an override takes it."""
    return str(values).replace(" ", "")


def _apart(names: Sequence[str], keys: Sequence[str] | None) -> list[str]:
    """Names that are all different."""
    if len(set(map(str.lower, names))) == len(names):
        return list(names)
    if keys is not None:
        return list(keys)
    often = Counter(map(str.lower, names))
    return [f"{name}_{i}" if often[name.lower()] > 1 else name for i, name in enumerate(names)]
