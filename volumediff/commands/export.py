"""`volumediff export`: a trained run as one file that others can use."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.model_files import export as export_run
from volumediff.commands._options import (
    DataRoot,
    ExportedMethod,
    MethodWords,
    RunArgument,
    defaults,
    out_line,
    say,
)
from volumediff.commands._written import WrittenFiles

__all__ = ["export"]

WORK = defaults(export_run)


def export(
    run: RunArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="Model file, NAME.safetensors.")],
    card: Annotated[
        Path,
        typer.Option(
            "--card", help="YAML with about, data, licence, limits and metrics of the model."
        ),
    ],
    overrides: MethodWords = None,
    method: ExportedMethod = WORK["method"],
    data: DataRoot = WORK["data"],
) -> None:
    """Write a trained run as one file with a model card, ready for one method.

    volumediff export runs/t1w -o t1w.safetensors --card t1w.yaml --method synthetic
    """
    from volumediff.config import load

    files = WrittenFiles(output)
    written = export_run(
        run,
        output,
        card=load(card),
        method=method,
        overrides=overrides or (),
        data=data,
        report=say,
    )
    out_line(f"{output}: method {written.method}, step {written.step}")
    files.finish(then=f"volumediff {written.verb} INPUT --run {output} -o out/")
