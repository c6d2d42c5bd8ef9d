"""Words for a quick check, appended to the commands of a shell block that take overrides."""

import re
from collections.abc import Collection

__all__ = ["with_small"]

# What ends a command: a pipe, a list, a redirection, a comment, the end of the line.
_END = re.compile(
    r"""'[^']*'|"(?:\\.|[^"\\])*"|\\.|(?P<end>\s+#|\s*(?:[|;&<>)]|\d>|\n|\Z))""", re.S
)
_COMMAND = re.compile(r"(?<![\w./-])(?:-m )?volumediff(?= +[a-z])")


def with_small(script: str, words: str, taking: Collection[str]) -> str:
    """The script with the words at the end of each `volumediff` command that takes overrides.

    Arguments:
        script: text of a shell block
        words: overrides, as they are written on a command line
        taking: names of the commands that take overrides
    """
    if not words:
        return script
    places = []
    for found in _COMMAND.finditer(script):
        command = script[found.end() :].split(maxsplit=1)[0]
        if command in taking:
            places.append(_end(script, found.end()))
    for place in reversed(places):
        script = f"{script[:place]} {words}{script[place:]}"
    return script


def _end(script: str, start: int) -> int:
    """Where the command ends that goes on at `start`."""
    return next(m.start() for m in _END.finditer(script, start) if m["end"] is not None)
