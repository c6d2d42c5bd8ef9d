"""The reference of configurations: every key of every task, from the classes that read them."""

import inspect
import typing
from collections.abc import Iterator
from dataclasses import is_dataclass

from pydantic import BaseModel

from volumediff.config import available, component, described
from volumediff.documentation.reference.arguments import Argument, arguments_of
from volumediff.documentation.reference.markdown import anchor, code, page, table
from volumediff.settings.run_config import DEFAULT, RunConfig

__all__ = ["configuration", "schemas", "sections"]

LEAD = """A configuration is a YAML file with the keys of this page; `key=value` words of a command
override single ones, such as `optim.lr=1e-4`. The key `task` says what is trained and which keys
there are beside those of all runs. Where a value is a component, it is a name or a mapping with
`name` and the component's arguments, see [components](components.md). Unknown keys are refused
with the nearest known one."""
HEADINGS = ("key", "value", "default", "meaning")


def configuration() -> str:
    """The page."""
    parts = [_section("", RunConfig, "Keys of all runs")]
    parts += [_section(place, cls, code(place)) for place, cls in sections(RunConfig)]
    common = dict(sections(RunConfig))
    for name in sorted(available("task"), key=lambda n: (n != DEFAULT, n)):
        schema = schemas()[name]
        parts.append(_task(name, schema))
        inner = [(p, c) for p, c in sections(schema) if p not in common]
        parts += [_section(p, c, f"{code(p)} of the task {name}", name) for p, c in inner]
    return page("Configuration keys", LEAD, *parts)


def schemas() -> dict[str, type[RunConfig]]:
    """Task -> the class of its configuration."""
    return {name: component("task", name).schema for name in available("task")}


def sections(cls: type, place: str = "") -> Iterator[tuple[str, type]]:
    """Place and class of every section of a configuration, such as data.split."""
    hints = typing.get_type_hints(cls)
    for name in _keys(cls):
        for option in _options(hints[name]):
            if _is_section(option):
                yield f"{place}{name}", option
                yield from sections(option, f"{place}{name}.")


def _keys(cls: type) -> list[str]:
    return [argument.name for argument in arguments_of(cls)]


def _options(annotation: object) -> Iterator[object]:
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _options(inner)


def _is_section(option: object) -> bool:
    """Whether a value has keys of its own: components, which have names, are on another page."""
    if not inspect.isclass(option):
        return False
    return issubclass(option, BaseModel) or is_dataclass(option)


def _task(name: str, schema: type[RunConfig]) -> str:
    own = [a for a in arguments_of(schema) if a.name not in RunConfig.model_fields]
    return "\n\n".join([f"## Task {name}", described("task")[name], _table(own, name)])


def _section(place: str, cls: type, title: str, task: str = "") -> str:
    first = inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0]
    depth = "##" if not place else "###"
    name = "-".join(w for w in (task, place.replace(".", "-")) if w)
    return "\n\n".join(
        [f"{depth} {title}", " ".join(first.split()), _table(arguments_of(cls), name)]
    )


def _table(arguments: list[Argument], place: str) -> str:
    rows = (
        (
            f"{anchor(*(w for w in (place, a.name) if w))}{code(a.name)}",
            a.type,
            code(a.default) or "required",
            a.text,
        )
        for a in arguments
    )
    return table(HEADINGS, rows)
