"""Tables of an evaluation as HTML, and the legend that explains their metrics.

A wide table scrolls inside its own frame with the first column in place; `page.js` says so above
it where that is the case. The heading of a row is a link to the metric's entry in the legend, with
the definition as its tooltip.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from volumediff.evaluation.metric_definitions import METRICS
from volumediff.evaluation.summary import CaseRow, GapRow
from volumediff.evaluation.table_line import Line
from volumediff.metrics.bootstrap import Interval
from volumediff.metrics.definition import MetricDefinition

__all__ = [
    "bullets",
    "case_table_html",
    "framed_table",
    "gap_table_html",
    "legend",
    "method_table",
    "metrics_of",
]

NONE = "–"
MARKED = (
    "Bold: better than each of the other methods; the 95 % interval of every paired difference "
    "excludes zero (not corrected for the number of metrics)."
)


def method_table(
    methods: Sequence[str], lines: Sequence[Line], *, caption: str = "", first: str = "metric"
) -> str:
    """A row per line, a column per method; differences to references below each number.

    Arguments:
        methods: names, for the columns
        lines: rows
        caption: what there is to know about the numbers
        first: what the rows are
    """
    if named := dict.fromkeys(name for line in lines for name in line.differences):
        caption += f" Differences to {' and '.join(named)} are paired over patients."
    if any(line.best is not None for line in lines):
        caption += f" {MARKED}"
    body = []
    for line in lines:
        cells = []
        for number, cell in enumerate(line.cells):
            mark = ' class="best"' if number == line.best else ""
            below = [
                f"<small>{_with_interval(line, found[number], '+')} against "
                f"{escape(reference)}</small>"
                for reference, found in line.differences.items()
                if found[number] is not None and np.isfinite(found[number].value)
            ]
            cells.append(f"<td{mark}>{_value(line, cell)}{''.join(below)}</td>")
        body.append(f'<tr><th scope="row">{_heading(line)}</th>{"".join(cells)}</tr>')
    return framed_table([first, *methods], body, caption=caption)


def gap_table_html(rows: Sequence[GapRow]) -> str:
    """How much metrics differ between subgroups."""
    body = []
    for row in rows:
        text = row.metric.notation.text
        gap = text(row.gap.value)
        if np.isfinite(row.gap.low):
            gap += f"<small>{_unbroken(text(row.gap.low), text(row.gap.high))}</small>"
        cells = (escape(row.method), escape(row.worst), text(row.worst_value), gap)
        cells += (text(row.chance) or NONE,)
        inner = "".join(f"<td>{cell}</td>" for cell in cells)
        body.append(f'<tr><th scope="row">{_explained(row.metric.title, row.metric)}</th>{inner}')
    caption = (
        "The gap is the distance between the best and the worst subgroup, with its 95 % interval "
        "over patients. Gaps are never negative: compare them with the gap that 95 % of random "
        "subgroups of the same sizes do not exceed."
    )
    names = ("metric", "method", "worst subgroup", "its value", "gap", "gap by chance, at most")
    return framed_table(names, body, caption=caption)


def case_table_html(rows: Sequence[CaseRow]) -> str:
    """Volume by volume, where the patients are too few for intervals."""
    body = []
    for row in rows:
        numbers = (f"{row.ap:.3f}", row.found, f"{row.false_positives:.0f}")
        numbers += (f"{row.excess_ml:.1f}", f"{row.score:.3g}")
        shown = (row.method, *(n.replace("nan", NONE) or NONE for n in numbers))
        inner = "".join(f"<td>{escape(text)}</td>" for text in shown)
        body.append(f'<tr><th scope="row">{escape(row.case)}</th>{inner}</tr>')
    names = ("case", "method", "voxel AP", "lesions found by IoU, by recall", "false positives")
    return framed_table(
        [*names, "excess volume in ml", "volume score"],
        body,
        caption="Volume by volume, since the patients are too few for intervals.",
    )


def framed_table(columns: Sequence[str], body: Iterable[str], *, caption: str = "") -> str:
    """A table in a frame that scrolls sideways where the page is too narrow for it.

    Arguments:
        columns: headings, as text
        body: rows, as HTML
        caption: text below the table
    """
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    below = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="Table">'
        f"<table>{below}<thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def bullets(lines: Iterable[str], *, kind: str = "") -> str:
    """A list of sentences; nothing without any."""
    lines = list(lines)
    if not lines:
        return ""
    mark = f' class="{kind}"' if kind else ""
    return f"<ul{mark}>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>"


def metrics_of(lines: Iterable[Line]) -> dict[str, MetricDefinition]:
    """The metrics of rows by their identifiers, each once, in order."""
    return {_identifier(line.metric): line.metric for line in lines}


def legend(metrics: Mapping[str, MetricDefinition]) -> list[str]:
    """An entry for every metric of the tables, which their headings link to."""
    entries = [
        f'<dt id="{name}">{escape(m.title.strip())}</dt>'
        f"<dd>{escape(m.definition)} <span>Range: {escape(m.range)}"
        f"{escape(f' {m.unit}' if m.unit else '')}; {escape(m.better.value)}.</span></dd>"
        for name, m in metrics.items()
    ]
    return [f'<dl class="legend">{"".join(entries)}</dl>']


def _identifier(metric: MetricDefinition) -> str:
    """Of the metric's entry in the legend."""
    known = [
        f"metric-{kind}-{name}"
        for kind, metrics in METRICS.items()
        for name, other in metrics.items()
        if other is metric
    ]
    # The volumes of labels are defined where they are met.
    return known[0] if known else f"metric-{re.sub(r'[^a-z0-9]+', '-', metric.title.lower())}"


def _explained(text: str, metric: MetricDefinition) -> str:
    indent = ' class="part"' if text.startswith(" ") else ""
    return (
        f'<a{indent} href="#{_identifier(metric)}" title="{escape(metric.explanation)}">'
        f"{escape(text.strip())}</a>"
    )


def _heading(line: Line) -> str:
    return _explained(line.heading, line.metric)


def _value(line: Line, cell: Interval) -> str:
    if not np.isfinite(cell.value):
        return NONE
    text = line.text(cell.value)
    if np.isfinite(cell.low):
        text += f"<small>{_unbroken(line.text(cell.low), line.text(cell.high))}</small>"
    return text


def _with_interval(line: Line, cell: Interval, sign: str) -> str:
    text = f"<span>{line.text(cell.value, sign)}</span>"
    if np.isfinite(cell.low):
        text += f" ({_unbroken(line.text(cell.low, sign), line.text(cell.high, sign))})"
    return text


def _unbroken(low: str, high: str) -> str:
    """An interval that breaks before `to`, never inside of a number."""
    return f"<span>{low}</span> to <span>{high}</span>"
