"""YAML with a comment above the keys that have one."""

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

__all__ = ["comment_lines", "commented"]

WIDTH = 99


def commented(tree: Mapping[str, Any], comments: Mapping[str, str], *, above: str = "") -> str:
    """The tree as YAML; sections without comments stand in one line where they fit.

    Arguments:
        tree: nested dictionaries of plain values
        comments: dotted key -> text
        above: dotted key of the tree itself
    """
    lines: list[str] = []
    indent = "  " * (above.count(".") + 1) if above else ""
    for key, value in tree.items():
        path = f"{above}.{key}" if above else key
        if path in comments:
            lines += comment_lines(comments[path], indent)
        inside = any(name.startswith(f"{path}.") for name in comments)
        line = f"{indent}{key}: {_flow(value)}"
        if isinstance(value, Mapping) and value and (inside or len(line) > WIDTH):
            lines.append(f"{indent}{key}:")
            lines.append(commented(value, comments, above=path).rstrip("\n"))
        else:
            lines.append(line)
    return "\n".join(lines) + "\n"


def comment_lines(text: str, indent: str = "") -> list[str]:
    """The text as wrapped lines of comment."""
    head = f"{indent}# "
    width = WIDTH - len(head)
    return [f"{head}{line}" for part in text.splitlines() for line in textwrap.wrap(part, width)]


def _flow(value: Any) -> str:
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
    )
    return text.removesuffix("\n").removesuffix("\n...")
