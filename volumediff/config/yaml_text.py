"""YAML as configurations use it: plain values alone, each written out once, and within bounds.

Tags, anchors and aliases are refused: a configuration needs none, and a few hundred bytes of
aliases expand to billions of values. Keys are text and occur once in a mapping. A date is text.
"""

from typing import Any

import yaml

__all__ = ["DEEPEST", "LONGEST", "Unfit", "parse_yaml"]

LONGEST = 1 << 20  # characters of a text; the longest configuration that ships has 3 300
DEEPEST = 40  # levels of nesting; those that ship have 7
DIGITS = 64  # characters of a number; 25 write any double exactly

# Both build plain values alone; libyaml's is ten times as fast, and not everywhere.
BASE: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
DATE, MERGE = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge"


class Unfit(Exception):
    """A text that is not taken, with its reason.

    Arguments:
        reason: in a few words
        line: where, counted from 1; None where no line is to blame
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, of dictionaries, lists, text, numbers, truth values and None.

    Raises:
        Unfit: not YAML, or YAML that configurations do not use
    """
    if len(text) > LONGEST:
        raise Unfit(f"is too long: expected at most {LONGEST} characters, got {len(text)}")
    try:
        _check_events(text)
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        reason = f"not valid YAML: {error.problem}"
        raise Unfit(reason, _line(error.problem_mark or error.context_mark)) from None
    except UnicodeEncodeError as error:  # bytes of a command line in another encoding
        raise Unfit(f"holds {error.object[error.start : error.end]!a}, which is no text") from None
    except yaml.YAMLError as error:
        raise Unfit(f"not valid YAML: {' '.join(str(error).split())}") from None


def _check_events(text: str) -> None:
    """Raises Unfit where values would refer to others, carry tags or be nested too deep.

    Events come while the text is read: nothing is built of what is refused.
    """
    depth = 0
    for event in yaml.parse(text, Loader=BASE):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            reason = "anchors and aliases (& and *) are not supported; write the value out"
            raise Unfit(reason, _line(event.start_mark))
        if getattr(event, "tag", None) is not None:
            reason = f"not valid YAML: the tag {event.tag[:DIGITS]} is not supported; leave it out"
            raise Unfit(reason, _line(event.start_mark))
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > DEEPEST:
                reason = f"is nested too deep: expected at most {DEEPEST} levels"
                raise Unfit(reason, _line(event.start_mark))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _line(mark: Any) -> int | None:
    return None if mark is None else mark.line + 1


class _Loader(BASE):
    """Values of a text whose events have been checked."""

    # without dates: a number that looks like one is no date, and an impossible one no error
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML reads the class
        first: [(tag, pattern) for tag, pattern in pairs if tag != DATE]
        for first, pairs in BASE.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
        found = set()
        for key, _ in node.value:
            line = _line(key.start_mark)
            if key.tag == MERGE:
                raise Unfit("merge keys (<<) are not supported; write the values out", line)
            name = self.construct_object(key, deep=True)
            if not isinstance(name, str):
                got = f"{type(name).__name__} {str(name)[:DIGITS]}"
                raise Unfit(f"expected text as a key, got the {got}; put it into quotes", line)
            if name in found:
                raise Unfit(f"the key '{name[:DIGITS]}' is there twice; keep one of them", line)
            found.add(name)
        return super().construct_mapping(node, deep=deep)

    def construct_number(self, node: Any) -> int | float:
        line = _line(node.start_mark)
        if len(node.value) > DIGITS:
            reason = f"a number has {len(node.value)} characters: expected at most {DIGITS}"
            raise Unfit(reason, line)
        make = self.construct_yaml_int if node.tag == NUMBERS[0] else self.construct_yaml_float
        try:
            return make(node)
        except ValueError:
            raise Unfit(f"{node.value} is no number", line) from None


for _tag in NUMBERS:
    _Loader.add_constructor(_tag, _Loader.construct_number)
