"""`volumediff demo`: train, localize and report on simulated subjects."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import out_line, say, words

__all__ = ["demo"]


def demo(
    overrides: Annotated[list[str] | None, words("run.optim.steps=100")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Output folder.")] = Path("demo"),
) -> None:
    """Train on simulated subjects, find lesions in others, compare with baselines, report."""
    from volumediff.commands._demo import run_demo, table

    results = run_demo(output, overrides=overrides or [], say=say)
    out_line(table(results))
    out_line(f"\nOpen {output / 'report.html'} in a browser.")
