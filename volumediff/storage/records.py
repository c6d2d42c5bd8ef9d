"""JSON that is read back: through a model of its fields, so that a fault is one line.

`write` and `read` are for files that decide a result: sealed with their own SHA-256 (`seal`).
`parse` is for JSON that others may have written or that lies in a published folder: its fields are
checked all the same. Types are strict, numbers finite, unknown keys refused.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from volumediff.config import expected
from volumediff.errors import DataError, shown
from volumediff.storage.atomic import write_bytes
from volumediff.storage.seal import Broken, open_json, open_text, seal_json, seal_text

__all__ = ["Record", "parse", "parse_file", "read", "read_text", "write", "write_text"]

T = TypeVar("T")


class Record(BaseModel):
    """Fields of one kind of JSON; sub-classes declare them."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=()
    )


def write(path: Path, content: Record | Mapping[str, Any]) -> None:
    """Writes a record whole, with its SHA-256.

    Raises:
        DataError: no space or no permission; the old file stays
    """
    values = content.model_dump(mode="json") if isinstance(content, Record) else content
    write_bytes(path, seal_json(values))


def read(path: Path, model: type[T], *, advice: str = "restore it from a backup") -> T:
    """Reads what `write` wrote.

    Arguments:
        model: of its fields
        advice: what to do about a damaged one

    Raises:
        DataError: not there, damaged or edited, or with fields that do not fit
    """
    raw = _content(path, advice)
    try:
        body = open_json(raw)
    except Broken as error:
        raise DataError(f"{path}: damaged or edited: {error}; {advice}.") from None
    return parse(body, model, where=path, advice=advice)


def write_text(path: Path, text: str) -> None:
    """Writes YAML whole, with its SHA-256 in a comment at its end; raises as `write`."""
    write_bytes(path, seal_text(text))


def read_text(path: Path, *, advice: str) -> str:
    """Reads what `write_text` wrote; raises as `read`."""
    raw = _content(path, advice)
    try:
        return open_text(raw)
    except Broken as error:
        raise DataError(f"{path}: damaged or edited: {error}; {advice}.") from None


def parse_file(path: Path, model: Any, *, advice: str) -> Any:
    """The content of a JSON file without a digest, as `parse` gives it.

    Raises:
        DataError: not there, no JSON, or with fields that do not fit
    """
    return parse(_content(path, advice), model, where=path, advice=advice)


def parse(raw: bytes | str, model: Any, *, where: Path | str, advice: str) -> Any:
    """JSON as a model has it.

    Arguments:
        model: a `Record`, or any other type that pydantic knows
        where: the file, for the message
        advice: what to do about it

    Raises:
        DataError: one line with the file, the first field that does not fit, and the advice
    """
    try:
        return _adapter(model).validate_json(raw, strict=True)
    except ValidationError as error:
        raise DataError(f"{where}: damaged: {_fault(error)}; {advice}.") from None


def _fault(error: ValidationError) -> str:
    """The first fault: field, what it takes and what came."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "json_invalid":
        return " ".join(first["msg"].split())
    return f"{place or 'the file'}: {expected(first)}, got {shown(first['input'])}"


@cache
def _adapter(model: Any) -> Any:
    return TypeAdapter(model)


def _content(path: Path, advice: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {advice}.") from None
