"""The layout of data that a caller names, looked up before anything is read."""

from typing import TYPE_CHECKING

from volumediff.errors import UsageError

if TYPE_CHECKING:
    from volumediff.data.survey import Spec

__all__ = ["known_layout"]


def known_layout(layout: "Spec") -> "Spec":
    """The layout itself, if there is one of that name with these options.

    Raises:
        UsageError: no such layout, or options that it does not take
    """
    from volumediff.config import available, build
    from volumediff.data.survey import AUTO

    if layout == AUTO:
        return layout
    if isinstance(layout, str) and ":" not in layout and layout not in available("layout"):
        names = ", ".join([AUTO, *available("layout")])
        raise UsageError(f"layout {layout}: choose from {names}.")
    build("layout", layout, where="layout")
    return layout
