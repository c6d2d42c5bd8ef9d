"""What the values of label maps are called: the one place that puts a value into words."""

from collections.abc import Mapping
from typing import Any

__all__ = ["KEY", "label_name", "names_in"]

KEY = "label_names"  # in the JSON beside a result


def label_name(value: int, names: Mapping[int, str]) -> str:
    """`oedema`, or `label 2` where nobody has named it."""
    return names.get(value) or f"label {value}"


def names_in(facts: Mapping[str, Any]) -> dict[int, str]:
    """The names that the JSON beside a result knows, which has its keys as text."""
    return {int(value): str(name) for value, name in (facts.get(KEY) or {}).items()}
