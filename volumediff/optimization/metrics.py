"""Rows of metrics.jsonl, the figures of every step of a run."""

import json
from pathlib import Path
from typing import Any

__all__ = ["read_metrics"]


def read_metrics(path: Path, *, before: int | None = None) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, up to a step; a line cut by a killed process is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if before is None or row["step"] <= before:
            rows.append(row)
    return rows
