"""The reference of the Python interface: functions, classes and results, from docstrings."""

import inspect
import re
from collections.abc import Iterator
from typing import Any

import volumediff
from volumediff.documentation.reference.markdown import code, page

__all__ = ["python_interface"]

LEAD = """`import volumediff` loads nothing heavy; every name below loads when it is first used.
Images come in as paths or as images of nibabel, TorchIO, SimpleITK or MONAI, and results lie in
the voxel order of the image that came in. Errors of users are `volumediff.UsageError` (a wrong
option, override or configuration) and `volumediff.DataError` (a wrong file), each one line; a
fault of the program keeps its traceback."""
# Classes that functions return, which nobody imports by name.
RESULTS = ("LocalizationResult", "SegmentationResult", "TranslationResult")
_SECTION = re.compile(r"^(Arguments|Attributes|Returns|Raises|References):$")
_ENTRY = re.compile(r"^([\w, .*]+): (.*)$")


def python_interface() -> str:
    """The page."""
    from volumediff.api import results

    named = {name: getattr(volumediff, name) for name in volumediff.__all__}
    named |= {name: getattr(results, name) for name in RESULTS}
    classes = {n: v for n, v in named.items() if inspect.isclass(v)}
    functions = {n: v for n, v in named.items() if n not in classes}
    parts = ["## Functions", *(_function(n, f, "###") for n, f in functions.items())]
    for name, cls in classes.items():
        parts += [f"## {name}", prose(cls), *_members(name, cls)]
    return page("Python interface", LEAD, *parts)


def _members(owner: str, cls: type) -> Iterator[str]:
    for name, member in vars(cls).items():
        if name.startswith("_"):
            continue
        if isinstance(member, property):
            yield f"### {owner}.{name}\n\n{prose(member.fget)}"
        elif isinstance(member, classmethod | staticmethod):
            yield _function(name, member.__func__, "###", owner)
        elif inspect.isfunction(member):
            yield _function(name, member, "###", owner)


def _function(name: str, function: Any, depth: str, owner: str = "") -> str:
    title = f"{owner}.{name}" if owner else name
    prefix = "" if owner else "volumediff."
    parameters = list(inspect.signature(function).parameters.values())
    if owner:
        parameters = parameters[1:]
    words = []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        words.append(f"{stars}{parameter.name}{_default(parameter.default)}")
    call = f"{prefix}{title}({', '.join(words)})"
    if len(call) > 90:
        inner = "".join(f"    {word},\n" for word in words)
        call = f"{prefix}{title}(\n{inner})"
    return "\n\n".join([f"{depth} {title}", f"```text\n{call}\n```", prose(function)])


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return ""
    return f"={value.__name__ if inspect.isfunction(value) else repr(value)}"


def prose(documented: Any) -> str:
    """A docstring as Markdown: paragraphs, and a list for each of its sections."""
    doc = inspect.cleandoc(documented.__doc__ or "")
    return "\n\n".join(_part(part) for part in doc.split("\n\n") if part.strip())


def _part(part: str) -> str:
    first, *rest = part.splitlines()
    if not _SECTION.match(first):
        if first.startswith("    "):
            return "```python\n" + inspect.cleandoc("\n" + part) + "\n```"
        return " ".join(part.split())
    if first == "Returns:":
        return f"{first} {' '.join(' '.join(rest).split())}"
    entries: list[str] = []
    for line in rest:
        text = line[4:]
        if not text.startswith(" ") or not entries:
            entries.append(text)
        else:
            entries[-1] += f" {text.strip()}"
    return "\n".join([f"{first}", "", *(f"- {_entry(e)}" for e in entries)])


def _entry(text: str) -> str:
    found = _ENTRY.match(text)
    return f"{code(found[1])}: {found[2]}" if found else text
