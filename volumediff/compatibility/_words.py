"""Words that several reasons share."""

from collections.abc import Sequence

__all__ = ["class_of", "either", "undeclared"]


def undeclared(declared: str, what: str) -> str:
    return "" if declared else f", whose class declares no {what}"


def either(paths: Sequence[str] | None) -> str:
    return " or ".join(paths or ())


def class_of(part: object) -> type:
    return part if isinstance(part, type) else type(part)
