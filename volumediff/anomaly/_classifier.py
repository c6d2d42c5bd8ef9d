"""Classifiers reach the blocks that take one: guidances, routes, scores, first rows."""

from dataclasses import fields, is_dataclass, replace
from typing import Any

from volumediff.classification import ClassPosterior

__all__ = ["missing_classifier", "takes_classifier", "with_classifier"]

SLOT = "classifier"


def _inner(block: Any) -> dict[str, tuple[Any, ...]]:
    """Blocks that a block is made of, by field."""
    found = {}
    for f in fields(block):
        value = getattr(block, f.name)
        parts = value if isinstance(value, tuple) else (value,)
        if f.init and f.name != SLOT and parts and all(_is_block(p) for p in parts):
            found[f.name] = parts
    return found


def _is_block(value: Any) -> bool:
    return is_dataclass(value) and not isinstance(value, type)


def takes_classifier(block: Any) -> bool:
    """Whether the block, or a part of it, works with a classifier of noisy states."""
    if any(f.name == SLOT for f in fields(block)):
        return True
    return any(takes_classifier(p) for parts in _inner(block).values() for p in parts)


def missing_classifier(block: Any) -> bool:
    """Whether a block that works with a classifier has none."""
    if any(f.name == SLOT for f in fields(block)) and getattr(block, SLOT) is None:
        return True
    return any(missing_classifier(p) for parts in _inner(block).values() for p in parts)


def with_classifier(block: Any, classifier: ClassPosterior) -> Any:
    """The block with the classifier in every part that takes one.

    Raises:
        ValueError: a part asks for more classes than it has
    """
    changes: dict[str, Any] = {}
    if any(f.name == SLOT for f in fields(block)):
        changes[SLOT] = classifier
    for name, parts in _inner(block).items():
        if any(takes_classifier(p) for p in parts):
            made = tuple(with_classifier(p, classifier) for p in parts)
            changes[name] = made if isinstance(getattr(block, name), tuple) else made[0]
    return replace(block, **changes) if changes else block
