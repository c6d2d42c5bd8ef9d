"""The list of all cases: thumbnails, numbers and links; `page.js` sorts and filters it."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from urllib.parse import quote

__all__ = ["CaseColumn", "ListedCase", "case_list"]

NONE = "–"


@dataclass(frozen=True)
class CaseColumn:
    """A column of the list.

    Arguments:
        title: its heading
        explanation: its tooltip; empty where the heading says it all
    """

    title: str
    explanation: str = ""


@dataclass(frozen=True)
class ListedCase:
    """A row of the list.

    Arguments:
        case: its id
        page: address of its page relative to the list; None where it has none
        thumbnail: JPEG; None where there is no picture
        kind: what the list can be filtered by, such as the subgroup
        values: one for every column: a number with the text to show, or a text
        flags: what to look at, in words; flagged cases stand out
    """

    case: str
    page: str | None = None
    thumbnail: bytes | None = None
    kind: str = ""
    values: Sequence[tuple[float, str] | str] = field(default=())
    flags: Sequence[str] = ()


def case_list(
    cases: Sequence[ListedCase], columns: Sequence[CaseColumn], *, kinds: str = "group"
) -> list[str]:
    """HTML of the list, in the order of the cases.

    Arguments:
        cases: rows
        columns: of their values
        kinds: what `ListedCase.kind` is, for the label of the filter
    """
    names = sorted({c.kind for c in cases if c.kind})
    heads = [
        CaseColumn("case"),
        *([CaseColumn(kinds)] if names else []),
        *columns,
    ]
    texts = [_of_words([c.values[i] for c in cases]) for i in range(len(columns))]
    left = [False, *([True] if names else []), *texts]  # the case's own cell is left in any case
    head = "".join(_head(column, text=text) for column, text in zip(heads, left, strict=True))
    rows = "".join(_row(c, texts, grouped=bool(names)) for c in cases)
    return [
        '<div class="case-list">',
        _filters(kinds, names),
        '<div class="scroll" tabindex="0" role="region" aria-label="Cases"><table>'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div></div>",
    ]


def _filters(kinds: str, names: Sequence[str]) -> str:
    """Hidden until the script can do what they promise."""
    parts = [
        '<label>Find a case <input type="search" data-filter="text" autocomplete="off"></label>'
    ]
    if names:
        options = "".join(f'<option value="{escape(n)}">{escape(n)}</option>' for n in names)
        parts.append(
            f'<label>{escape(kinds)} <select data-filter="kind"><option value="">all</option>'
            f"{options}</select></label>"
        )
    return (
        f'<div class="filters" hidden>{"".join(parts)}<span data-shown role="status"></span></div>'
    )


def _head(column: CaseColumn, *, text: bool) -> str:
    tip = f' title="{escape(column.explanation)}"' if column.explanation else ""
    button = f'<button type="button"{tip}>{escape(column.title)}</button>'
    return f'<th scope="col"{_aligned(text)}>{button}</th>'


def _row(case: ListedCase, texts: Sequence[bool], *, grouped: bool) -> str:
    name = f"<bdi>{escape(case.case)}</bdi>"
    address = None if case.page is None else quote(case.page)
    linked = name if address is None else f'<a href="{address}">{name}</a>'
    marks = f'<span class="flags">{escape("; ".join(case.flags))}</span>' if case.flags else ""
    cells = [
        f'<th scope="row" data-order="{escape(case.case)}"><div class="who">'
        f"{_picture(case, address)}<span>{linked}{marks}</span></div></th>"
    ]
    if grouped:
        cells.append(_cell(case.kind, text=True))
    cells += [_cell(value, text=text) for value, text in zip(case.values, texts, strict=True)]
    mark = ' class="flagged"' if case.flags else ""
    text = " ".join([case.case, case.kind, *case.flags])
    return (
        f'<tr{mark} data-text="{escape(text)}" data-kind="{escape(case.kind)}">'
        f"{''.join(cells)}</tr>"
    )


def _picture(case: ListedCase, address: str | None) -> str:
    """The name beside it links to the case; the picture does so for the mouse."""
    if case.thumbnail is None:
        return ""
    data = base64.b64encode(case.thumbnail).decode()
    image = f'<img alt="" loading="lazy" decoding="async" src="data:image/jpeg;base64,{data}">'
    if address is None:
        return image
    return f'<a href="{address}" tabindex="-1" aria-hidden="true">{image}</a>'


def _of_words(values: Sequence[tuple[float, str] | str]) -> bool:
    """Whether a column has words; one in which every number is missing has none."""
    return all(isinstance(value, str) for value in values) and any(value for value in values)


def _aligned(text: bool) -> str:
    """Words start at the left, numbers end at the right."""
    return ' class="text"' if text else ""


def _cell(value: tuple[float, str] | str, *, text: bool) -> str:
    if isinstance(value, str):
        return f"<td{_aligned(text)}>{escape(value) or NONE}</td>"
    number, shown = value
    order = f"{number:.9g}" if math.isfinite(number) else ""
    return f'<td data-order="{order}">{escape(shown) or NONE}</td>'
