"""`volumediff demo`."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import Words, out_line, say

__all__ = ["demo"]


def demo(
    overrides: Words = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Output folder.")] = Path("demo"),
) -> None:
    """Train on simulated subjects, find lesions in others, compare with baselines, report."""
    from volumediff.commands._demo import run_demo, table

    results = run_demo(out, overrides=overrides or [], say=say)
    out_line(table(results))
    out_line(f"\nOpen {out / 'report.html'} in a browser.")
