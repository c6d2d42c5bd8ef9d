"""`volumediff export`: a trained run as one file that others can use."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import DataRoot, Method, MethodWords, RunArgument, out_line, say
from volumediff.commands._written import WrittenFiles

__all__ = ["export"]


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
    method: Method = "synthetic",
    data: DataRoot = None,
) -> None:
    """Write a trained run as one file with a model card, calibrated for one method.

    volumediff export runs/t1w -o t1w.safetensors --card t1w.yaml --method synthetic
    """
    from volumediff.api.run import load
    from volumediff.config import load as load_yaml

    loaded, files = load(run, data=data), WrittenFiles(output)
    written = loaded.export(
        output, card=load_yaml(card), method=method, overrides=overrides or (), report=say
    )
    out_line(f"{output}: method {written.method}, step {written.step}")
    files.finish(then=f"volumediff localize INPUT --run {output} -o out/")
