"""Components from their specification, with every argument checked against its annotation.

A component is written as `{name: wavelet, levels: 2}`: the name is a file in a family folder, a
class, in snake case, of a family file, or `package.module:Class` for code outside of the package;
the other keys are keyword arguments of its constructor, checked against the constructor's own
annotations. Where an annotation is itself a family's base class, the value is again a component.
Arguments that follow from other parts (channels, strides) are passed as `derived` and may not be
written in YAML. In Python a class may stand for its name, and an instance for a specification.
"""

import inspect
import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from volumediff.component import is_handed_in
from volumediff.config.components import available, component, family_of, suggestion
from volumediff.config.expectation import expected
from volumediff.config.families import family as family_named
from volumediff.errors import UsageError, shown

__all__ = ["arguments", "build", "configurable", "type_adapter", "value_of"]


def arguments(family: str, spec: Any) -> set[str]:
    """Arguments that the constructor of a specified component takes; none if it names none."""
    name = spec.get("name") if isinstance(spec, Mapping) else spec
    if not isinstance(name, str | type):
        return set()
    try:
        return set(_parameters(component(family, name)))
    except UsageError:
        return set()  # build says so better


def build(family: str, spec: Any, *, where: str = "", **derived: Any) -> Any:
    """Constructs a component from its specification.

    Arguments:
        family: for example `space`, `kernel`, `route`
        spec: a name, or a mapping with the key `name` and keyword arguments; a class may stand for
            the name, and a component that is built already is returned as it is
        where: path of the specification in its file, for messages
        derived: arguments that are computed, not configured

    Raises:
        UsageError: unknown name or key, or wrong type; one line that says what is expected
    """
    where = where or family
    if family_named(family).holds(type(spec)):
        return spec
    spec = {"name": spec} if isinstance(spec, str | type) else spec
    if not isinstance(spec, Mapping) or "name" not in spec:
        raise UsageError(
            f"{where}: expected a name or a mapping with the key 'name', got {shown(spec)}; "
            f"choose the name from {', '.join(available(family))}."
        )
    if not isinstance(spec["name"], str | type):
        raise UsageError(f"{where}.name: expected a name, got {shown(spec['name'])}.")
    cls = component(family, spec["name"])
    hints = typing.get_type_hints(cls.__init__)
    hidden = set(derived) | _handed_in(cls)
    parameters = {n: p for n, p in _parameters(cls).items() if n not in hidden}
    values = {}
    for name, value in spec.items():
        if name == "name":
            continue
        if name not in parameters:
            takes = ", ".join(parameters) or "no arguments"
            reason = (
                "is derived, not configured" if name in hidden else f"{cls.__name__} takes {takes}"
            )
            raise UsageError(f"{where}.{name}: {reason}.{suggestion(name, list(parameters))}")
        values[name] = value_of(hints.get(name, Any), value, f"{where}.{name}")
    missing = [
        n
        for n, p in parameters.items()
        if n not in values and p.default is inspect.Parameter.empty
    ]
    if missing:
        raise UsageError(f"{where}: {cls.__name__} needs {', '.join(missing)}.")
    try:
        return cls(**derived, **values)
    except ValueError as error:
        raise UsageError(f"{where}: {error}") from error


def configurable(cls: type) -> list[str]:
    """Arguments of a constructor that a configuration may name, derived ones included."""
    handed = _handed_in(cls)
    return [name for name in _parameters(cls) if name not in handed]


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    """The named parameters of a constructor; `**others` takes what is derived, never what is
    configured, so that a key with a typing error is not swallowed."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {n: p for n, p in inspect.signature(cls).parameters.items() if p.kind in named}


def _handed_in(cls: type) -> set[str]:
    """Arguments that a component declares as handed in, and never configured."""
    return {f.name for f in fields(cls) if is_handed_in(f)} if is_dataclass(cls) else set()


def value_of(annotation: Any, value: Any, where: str) -> Any:
    """The value converted to its annotation; nested components are built.

    Arguments:
        annotation: of an argument of a constructor
        value: as in YAML
        where: its path in the file, for messages

    Raises:
        UsageError: another type, or a component that cannot be built
    """
    options = [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        options = list(typing.get_args(annotation))
    if value is None and type(None) in options:
        return None
    for option in options:
        family = family_of(option)
        if family:
            return build(family, value, where=where)
        inner = (
            family_of(typing.get_args(option)[0]) if typing.get_origin(option) is tuple else None
        )
        if inner and isinstance(value, list | tuple):
            return tuple(build(inner, v, where=f"{where}[{i}]") for i, v in enumerate(value))
        if inner:
            raise UsageError(
                f"{where}: expected a list of {inner} components, got {shown(value)}."
            )
    try:
        return type_adapter(annotation).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{p}]" for p in first["loc"] if isinstance(p, int))
        raise UsageError(
            f"{where}{place}: {expected(first)}, got {shown(first['input'])}."
        ) from error


def type_adapter(annotation: Any) -> TypeAdapter:
    """Takes values of an annotation; numbers are finite."""
    config = ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False)
    try:
        return TypeAdapter(annotation, config=config)
    except PydanticUserError:  # a dataclass or model, which brings its own
        return TypeAdapter(annotation)
