"""Decisions on ambiguous files, as users write them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Annotated, Any

from pydantic import TypeAdapter, ValidationError

from volumediff.api.overrides import words_of
from volumediff.config import expected, overridden
from volumediff.data.read_policy import ReadPolicy
from volumediff.errors import UsageError
from volumediff.settings.sections import declared

__all__ = ["Read", "read_policy"]

Read = Sequence[str] | Mapping[str, Any]
"""Fields of `ReadPolicy`: `key=value` words, or a mapping."""

_POLICY = TypeAdapter(Annotated[ReadPolicy, declared(ReadPolicy)])


def read_policy(given: Read, base: ReadPolicy | None = None) -> ReadPolicy:
    """The base, by default what the program does by itself, with what is given in its place.

    Raises:
        UsageError: no such field, or a value that it does not take
    """
    words = words_of(given) if isinstance(given, Mapping) else given
    tree = {**asdict(base or ReadPolicy()), **overridden({}, list(words))}
    try:
        return _POLICY.validate_python(tree)
    except ValidationError as error:
        first = error.errors()[0]
        reason = str(first["ctx"]["error"]) if first["type"] == "value_error" else expected(first)
        field = "".join(f" {part}" for part in first["loc"][:1])  # none where a key is unknown
        if field and first["type"] != "value_error":
            reason = f"{reason.rstrip('.')}, got {first['input']!r}"
        raise UsageError(f"read{field}: {reason.rstrip('.')}.") from None
