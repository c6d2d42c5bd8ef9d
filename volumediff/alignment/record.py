"""<case>_transform.json: how a case was prepared, the way back, and the numbers of the check."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from volumediff.alignment.quality import Quality
from volumediff.data.remarks import Remark
from volumediff.outputs.export import finite
from volumediff.storage.records import Record, read, write

__all__ = ["read_transform", "transform_file", "write_transform"]

Affine = Annotated[
    tuple[Annotated[tuple[float, ...], Field(min_length=4, max_length=4)], ...],
    Field(min_length=4, max_length=4),
]
Size = Annotated[int, Field(gt=0)]
Hex = Annotated[str, Field(pattern=r"^([0-9a-f]{2})*$")]


class StoredGrid(Record):
    """`data.grid.Grid`, its header in hexadecimal digits."""

    shape: tuple[Size, Size, Size]
    affine: Affine
    header: Hex | None


class Channel(Record):
    """One image: the file, what was made of it, and `data.alignment.Alignment`."""

    file: str
    sha256: str
    prepared: str
    bias_field: tuple[float, float] | None
    native_to_template: Affine
    volume_scale: float
    native: StoredGrid
    template: StoredGrid


class NamedTemplate(Record):
    """What the case was registered with."""

    name: str
    sha256: str


class Transform(Record):
    """The file."""

    case: str
    patient: str
    template: NamedTemplate
    first: str
    label_of: str | None
    channels: dict[str, Channel]
    quality: Quality
    findings: tuple[Remark, ...]


def transform_file(folder: Path, case: str) -> Path:
    """Where the record of a prepared case lies."""
    return folder / case / f"{case}_transform.json"


def write_transform(path: Path, record: dict[str, Any]) -> None:
    """Writes the record of a case whole, with its SHA-256."""
    write(path, finite(record))


def read_transform(folder: Path, case: str) -> dict[str, Any]:
    """The record of a prepared case.

    Raises:
        DataError: it is damaged or edited
    """
    path = transform_file(folder, case)
    advice = "restore it from a backup, or remove it and prepare the case again"
    return read(path, Transform, advice=advice).model_dump()
