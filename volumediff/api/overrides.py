"""Keyword components in Python as overrides of the command line, so that both mean the same.

sampler={"name": "ddim", "steps": 10}    sampler={name: ddim, steps: 10}      another component
sampler={"steps": 10}                    sampler.steps=10                     another argument
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["words_of"]


def words_of(components: Mapping[str, Any]) -> list[str]:
    """`key=value` overrides of keyword arguments.

    Arguments:
        components: name -> value; a mapping with the key `name` is a component as a whole, one
            without changes what is named in it alone
    """
    words = []
    for name, value in components.items():
        if isinstance(value, Mapping) and value and "name" not in value:
            words += words_of({f"{name}.{inner}": v for inner, v in value.items()})
        else:
            words.append(f"{name}={_text(value)}")
    return words


def _text(value: Any) -> str:
    """The value as YAML in one line."""
    import yaml

    # in a list, so that a scalar does not become a document of its own
    text = yaml.safe_dump(
        [_plain(value)], default_flow_style=True, width=float("inf"), sort_keys=False
    )
    return text.strip()[1:-1]


def _plain(value: Any) -> Any:
    """The value with the types that YAML knows."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, float):  # numpy's double is a Python float
        return float(value)
    import numpy as np

    return value.item() if isinstance(value, np.generic) else str(value)
