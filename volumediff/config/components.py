"""From the name of a component to its class: a file stem, or `package.module:Class`."""

import difflib
import importlib
import inspect
import traceback
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from volumediff.config.families import FAMILIES, Family, family
from volumediff.config.listing import class_name, listed, name_of
from volumediff.errors import UsageError

__all__ = [
    "available",
    "base_of",
    "component",
    "described",
    "family_of",
    "name_of",
    "named",
    "reference",
    "suggestion",
]


def suggestion(word: str, choices: list[str]) -> str:
    """` Did you mean 'x'?` for the nearest choice, or nothing."""
    near = difflib.get_close_matches(word, choices, n=1)
    return f" Did you mean '{near[0]}'?" if near else ""


def available(family: str) -> list[str]:
    """Names of the components that ship in a family, for example `space`; imports none of them."""
    return list(listed(family))


def described(family: str) -> dict[str, str]:
    """Name -> one-line description of the components that ship in a family; imports none."""
    return dict(listed(family))


def family_of(annotation: object) -> str | None:
    """The family whose base class the annotation is or extends."""
    if not inspect.isclass(annotation):
        return None
    return next((f.name for f in FAMILIES.values() if f.holds(annotation)), None)


def base_of(family_name: str) -> type:
    """The class that every component of a family extends."""
    place, _, name = family(family_name).base.partition(":")
    return getattr(importlib.import_module(place), name)


def reference(cls: type) -> str:
    """The name by which a configuration finds a class: short where it ships, else with its module.

    Raises:
        UsageError: the class extends the base of no family
    """
    name = family_of(cls)
    if name is None:
        raise UsageError(f"{cls.__name__}: extends the base class of no family of components.")
    known = FAMILIES[name]
    if known.folder and cls.__module__.startswith(f"{known.place}."):
        return cls.__module__.removeprefix(f"{known.place}.")
    if cls.__module__ == known.place:
        return name_of(cls)
    return f"{cls.__module__}:{cls.__qualname__}"


def named(spec: Any) -> Any:
    """A specification with the names of the classes in it, as it can be written to YAML."""
    if isinstance(spec, type):
        return reference(spec)
    if isinstance(spec, Mapping):
        return {key: named(value) for key, value in spec.items()}
    return [named(value) for value in spec] if isinstance(spec, list | tuple) else spec


def component(family_name: str, name: str | type) -> type:
    """The class behind a name.

    Arguments:
        family_name: for example `map`
        name: of a component that ships, `package.module:Class` of another, or the class itself

    Raises:
        UsageError: one line: no such name, a module that cannot be imported, no such class in it,
            or a class that does not extend the base of the family
    """
    known = family(family_name)
    if isinstance(name, type):
        return _checked(name, known, f"{known.name} {name.__name__}")
    here = f"{known.name}.name = {name!r}"
    if ":" in str(name):
        return _checked(_outside(str(name), here), known, here)
    names = listed(known.name)
    if name not in names:
        hint = suggestion(str(name), list(names))
        if "." in str(name):
            hint = " Name a class of your own as package.module:Class."
        raise UsageError(f"{here}: choose from {', '.join(names)}.{hint}")
    place = f"{known.place}.{name}" if known.folder else known.place
    module = importlib.import_module(place)
    found = {class_name(c.__name__, known): c for c in _classes(module, known)}
    if name in found:
        return found[name]
    if len(found) != 1:
        got = " and ".join(c.__name__ for c in found.values()) or "none"
        raise UsageError(
            f"{here}: expected one class that extends {_base(known)} in {module.__file__}, got "
            f"{got}; name one of them after the file, or start the others with an underscore."
        )
    return next(iter(found.values()))


def _classes(module: ModuleType, known: Family) -> list[type]:
    """Classes of a module that a configuration can name."""
    return [
        c
        for c in vars(module).values()
        if inspect.isclass(c)
        and c.__module__ == module.__name__
        and not c.__name__.startswith("_")
        and not inspect.isabstract(c)
        and known.holds(c)
    ]


def _outside(name: str, here: str) -> type:
    """The class of `package.module:Class`."""
    place, _, wanted = name.partition(":")
    words = [*place.split("."), *wanted.split(".")]
    if not all(w.isidentifier() for w in words):
        raise UsageError(f"{here}: expected package.module:Class.")
    try:
        found = importlib.import_module(place)
    except Exception as error:
        raise UsageError(f"{here}: {_reason(error, place)}") from error
    for word in wanted.split("."):
        if not hasattr(found, word):
            classes = [n for n, c in vars(found).items() if inspect.isclass(c)]
            hint = suggestion(word, classes)
            raise UsageError(f"{here}: {place} has no class {word}.{hint}")
        found = getattr(found, word)
    if not inspect.isclass(found):
        raise UsageError(f"{here}: expected a class, got {type(found).__name__}.")
    return found


def _reason(error: Exception, place: str) -> str:
    """Why a module cannot be imported: it is not there, or it raises, and where."""
    text = " ".join(str(error).split()) or type(error).__name__
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is not None and (place == missing or place.startswith(f"{missing}.")):
        return f"cannot import {place} ({text}); install it, or add its folder to PYTHONPATH."
    last = traceback.extract_tb(error.__traceback__)[-1]
    file, line = last.filename, last.lineno
    if isinstance(error, SyntaxError) and error.filename:
        file, line, text = error.filename, error.lineno, error.msg
    return f"importing {place} fails at {file}:{line} ({type(error).__name__}: {text})."


def _checked(cls: type, known: Family, here: str) -> type:
    if not known.holds(cls):
        raise UsageError(f"{here}: expected a class that extends {_base(known)}, got {cls!r}.")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise UsageError(f"{here}: {cls.__name__} must define {missing}.")
    return cls


def _base(known: Family) -> str:
    return known.base.replace(":", ".")
