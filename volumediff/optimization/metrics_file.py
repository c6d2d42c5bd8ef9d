"""Lines of metrics.jsonl: loss, learning rate and other numbers of every step of a run."""

from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from volumediff.errors import DataError
from volumediff.storage.records import Record, parse

__all__ = ["read_metrics"]


class MetricsRow(Record):
    """A line of metrics.jsonl: a step and its numbers, which may come to nothing finite."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)
    __pydantic_extra__: dict[str, int | float | None]

    step: int


def read_metrics(path: Path, *, before: int | None = None) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, up to a step.

    A mere log stops nobody: lines that are damaged, or cut by a killed process, are left out.
    """
    rows = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            row = parse(line, MetricsRow, where=path, advice="left out").model_dump()
        except DataError:
            continue
        if before is None or row["step"] <= before:
            rows.append(row)
    return rows
