"""Markdown of the generated pages."""

from collections.abc import Iterable, Sequence

__all__ = ["anchor", "code", "page", "table"]

MARK = (
    "<!-- Generated from the code by `volumediff docs --reference`; a test compares the two. "
    "Do not edit. -->"
)


def page(title: str, *parts: str) -> str:
    """A generated page: the mark, the heading, then the parts with blank lines between them."""
    return "\n\n".join([f"# {title}", MARK, *(p.strip("\n") for p in parts if p)]) + "\n"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; nothing where there are no rows."""
    lines = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    if not lines:
        return ""
    head = [f"| {' | '.join(headings)} |", f"|{'---|' * len(headings)}"]
    return "\n".join([*head, *lines])


def code(text: str) -> str:
    """Text in the type of code; nothing for nothing."""
    return f"`{text}`" if text else ""


def anchor(*words: str) -> str:
    """A place that links may name, `words` with hyphens between them."""
    return f'<a id="{"-".join(words)}"></a>'


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
