"""The reference of the commands: every argument and option, from the program itself."""

import inspect
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any

from volumediff.documentation.reference.markdown import code, page, table

__all__ = ["Parameter", "commands", "parameters_of"]

KEPT = "\b\n"  # begins a paragraph of a help text whose lines stay as they are
GRAMMAR = """The grammar is the same in every command: inputs are paths, words with `=` are
overrides of settings (a path with `=` is written with a folder, `./a=b.nii.gz`), a trained run is
`--run`, and everything else is an option. `volumediff COMMAND --help` prints what stands here.
What a command ends with is on the page [exit codes](exit-codes.md)."""


@dataclass(frozen=True)
class Parameter:
    """An argument, or an option, of a command as its help shows it."""

    names: tuple[str, ...]
    value: str
    default: str
    help: str
    option: bool


def commands(program: Any) -> str:
    """The page.

    Arguments:
        program: click's group of all commands
    """
    functions = {n: inspect.unwrap(c.callback) for n, c in program.commands.items()}
    listed = table(
        ("command", "what it does"),
        ((f"[{name}](#{name})", _text(f).partition("\n\n")[0]) for name, f in functions.items()),
    )
    of_all = table(
        ("option", "meaning"),
        ((_names(p), p.help) for p in parameters_of(inspect.unwrap(program.callback))),
    )
    parts = [_command(name, function) for name, function in functions.items()]
    return page("Commands", GRAMMAR, listed, "## Options of the program", of_all, *parts)


def parameters_of(function: Callable[..., Any]) -> Iterator[Parameter]:
    """The parameters of a command, from the annotations of its function."""
    hints = typing.get_type_hints(function, include_extras=True)
    for name, parameter in inspect.signature(function).parameters.items():
        if typing.get_origin(hints[name]) is not Annotated:
            continue  # the context of the call
        kind, told = typing.get_args(hints[name])[:2]
        if getattr(told, "hidden", False):
            continue
        option = type(told).__name__ == "OptionInfo"
        # in an annotation the first name of an option stands where its default would
        words = [w for w in (told.default, *(told.param_decls or ())) if isinstance(w, str)]
        declared = tuple(word for w in words for word in w.split("/"))
        usual = f"--{name.replace('_', '-')}" if option else name.upper()
        yield Parameter(
            names=tuple(d for d in declared if d.startswith("-")) or (usual,),
            value=told.metavar or (_kind(kind) if option else usual),
            default=_default(parameter),
            help=" ".join((told.help or "").split()),
            option=option,
        )


def _command(name: str, function: Callable[..., Any]) -> str:
    given = list(parameters_of(function))
    arguments = [p for p in given if not p.option]
    options = [p for p in given if p.option]
    words = " ".join([*(p.value for p in arguments), *(["[OPTIONS]"] if options else [])])
    rows = ((_names(p), code(p.value), p.default, p.help) for p in options)
    parts = [
        f"## {name}",
        _text(function),
        f"```text\nvolumediff {name} {words}\n```",
        table(("argument", "meaning"), ((code(p.value), p.help) for p in arguments)),
        table(("option", "value", "default", "meaning"), rows),
    ]
    return "\n\n".join(part for part in parts if part)


def _names(parameter: Parameter) -> str:
    return ", ".join(code(name) for name in parameter.names)


def _kind(annotation: Any) -> str:
    """What an option takes, in words; nothing for one that takes no value."""
    inner = [a for a in typing.get_args(annotation) if a is not NoneType]
    if inner and typing.get_origin(annotation) is list:
        return _kind(inner[0])
    if inner and typing.get_origin(annotation) is not tuple:
        return _kind(inner[0])
    if typing.get_origin(annotation) is tuple:
        return " ".join(_kind(a) for a in inner)
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return " or ".join(str(member.value) for member in annotation)
    return {bool: "", int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(annotation, "TEXT")


def _default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    if value is parameter.empty or value is ...:
        return "required"
    if value is None or isinstance(value, bool) or value in ((), []):
        return ""
    shown = getattr(value, "value", value)
    shown = ", ".join(map(str, shown)) if isinstance(shown, list | tuple) else str(shown)
    return code(shown)


def _text(function: Callable[..., Any]) -> str:
    """The text of the help; its examples, which keep their lines, as code."""
    parts = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(
        f"```text\n{inspect.cleandoc(p.removeprefix(KEPT))}\n```"
        if p.startswith(KEPT)
        else " ".join(p.split())
        for p in parts
    )
