"""What the docstrings of a class say of its arguments: sentence, type and default of each."""

import inspect
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal

from pydantic import BaseModel

__all__ = ["Argument", "arguments_of", "sentences"]

# Sections of a docstring whose entries are `name: text`, with further lines set in.
_SECTION = re.compile(r"^(Arguments|Attributes):\n((?:    .*\n|\n)+)", re.MULTILINE)
_ENTRY = re.compile(r"^    ([\w, ]+): (.*(?:\n        .*)*)", re.MULTILINE)


@dataclass(frozen=True)
class Argument:
    """An argument as a page shows it; `text` is empty where nothing is written of it."""

    name: str
    type: str
    default: str
    text: str


def arguments_of(cls: type) -> list[Argument]:
    """The arguments that a configuration can give to a class, in their order."""
    from volumediff.component import is_handed_in

    written = sentences(cls)
    if issubclass(cls, BaseModel):
        return [
            Argument(
                name,
                _type(field.annotation),
                ""
                if field.is_required()
                else _value(field.get_default(call_default_factory=True)),
                written.get(name, ""),
            )
            for name, field in cls.model_fields.items()
        ]
    hidden = {f.name for f in fields(cls) if is_handed_in(f)} if is_dataclass(cls) else set()
    hints = typing.get_type_hints(cls.__init__)
    return [
        Argument(
            p.name,
            _type(hints.get(p.name, p.annotation)),
            "" if p.default is p.empty else _value(p.default),
            written.get(p.name, ""),
        )
        for p in inspect.signature(cls).parameters.values()
        if p.name not in hidden
    ]


def sentences(cls: type) -> dict[str, str]:
    """Argument -> what the docstring of the class says of it, or of the nearest base that does."""
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        doc = inspect.cleandoc(base.__dict__.get("__doc__") or "") + "\n"
        for section in _SECTION.finditer(doc):
            for entry in _ENTRY.finditer(section[2]):
                text = " ".join(entry[2].split())
                found |= dict.fromkeys((n.strip() for n in entry[1].split(",")), text)
    return found


def _type(annotation: Any) -> str:
    """A type in words that YAML knows."""
    from volumediff.config import family_of

    family = family_of(annotation)
    if family is not None:
        return f"[{family}](components.md#{family})"
    if (isinstance(annotation, type) and issubclass(annotation, BaseModel)) or is_dataclass(
        annotation
    ):
        return "mapping"
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _type(inner[0])
    if origin is Literal:
        return " or ".join(str(value) for value in inner)
    if origin in (typing.Union, UnionType):
        return " or ".join(dict.fromkeys(_type(a) for a in inner))
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        kinds = list(dict.fromkeys(_type(a) for a in inner if a is not Ellipsis))
        count = "" if Ellipsis in inner or origin is not tuple else f"{len(inner)} of "
        return f"list of {count}{' or '.join(kinds)}"
    if origin is not None and issubclass(origin, Mapping):
        return "mapping"
    return _NAMES.get(annotation, str(getattr(annotation, "__name__", annotation)))


_NAMES = {
    NoneType: "null",
    bool: "true or false",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    Any: "any",
}


def _value(value: Any) -> str:
    """A default as YAML writes it."""
    from volumediff.config import family_of, reference

    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return _value(value.value)
    if isinstance(value, tuple | list):
        return f"[{', '.join(_value(v) for v in value)}]"
    if family_of(type(value)) is not None:
        return reference(type(value))
    if is_dataclass(value) or isinstance(value, BaseModel):
        return "as below"
    return str(value)
