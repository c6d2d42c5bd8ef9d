"""Tables on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from volumediff.data.check import Row
from volumediff.inference.capabilities import Check
from volumediff.inference.evaluation import MethodResult
from volumediff.inference.summary import coverage, group_table, measure_table
from volumediff.metrics.bootstrap import Interval

__all__ = ["checks", "families", "findings", "measures"]

COLOURS = {"error": "red", "problem": "red", "warning": "yellow", "note": "yellow"}
WIDE = 200  # columns where there is no terminal: lines are for files and programs then


def _console() -> Console:
    width = None if sys.stdout.isatty() else WIDE
    return Console(width=width, highlight=False, markup=False)


def findings(rows: Sequence[Row]) -> None:
    """The rows of `check`, then one line with their counts."""
    table = Table(box=None, pad_edge=False)
    for name in ("case", "file", "", "code", "message"):
        table.add_column(name, overflow="fold")
    for row in rows:
        style = COLOURS.get(row.severity)
        table.add_row(row.case, row.file, row.severity, row.code, row.message, style=style)
    console = _console()
    console.print(table)
    count = {s: sum(r.severity == s for r in rows) for s in ("error", "warning")}
    files = sum(r.code == "summary" for r in rows)
    console.print(f"{files} readable files, {count['error']} errors, {count['warning']} warnings")


def measures(results: Sequence[MethodResult]) -> None:
    """One row per measure, one column per method; then voxel AP by group."""
    table = Table(box=None, pad_edge=False)
    table.add_column("")
    for r in results:
        table.add_column(r.method, justify="right")
    for heading, cells in measure_table(results)[0]:
        table.add_row(heading, *(_cell(c) for c in cells))
    columns, rows, _ = group_table(results)
    for i, group in enumerate(columns[:-1]):
        table.add_row(f"  voxel AP, {group}", *(_cell(cells[i]) for _, cells in rows))
    console = _console()
    console.print(table)
    console.print(coverage(results))


def _cell(value: Interval) -> str:
    if not np.isfinite(value.value):
        return "-"
    text = f"{value.value:.3f}"
    return f"{text} ({value.low:.3f}-{value.high:.3f})" if np.isfinite(value.low) else text


def families(found: Mapping[str, Any]) -> None:
    """What `info` lists."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    for name, names in found.items():
        if isinstance(names, Mapping):
            for family, members in names.items():
                table.add_row(family, ", ".join(members))
        else:
            table.add_row(name, ", ".join(names))
    _console().print(table)


def checks(found: Sequence[Check]) -> None:
    """What `doctor` found."""
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(2):
        table.add_column()
    table.add_column(overflow="fold")
    for line in found:
        table.add_row(line.state, line.name, line.message, style=COLOURS.get(line.state))
    _console().print(table)
