"""`volumediff push`: a run to the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.hub import push as push_run
from volumediff.commands._options import (
    DataRoot,
    ExportedMethod,
    HubModel,
    MethodWords,
    defaults,
    out_line,
    say,
)

__all__ = ["push"]

WORK = defaults(push_run)


def push(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a trained run, or a model file.")
    ],
    place: HubModel,
    overrides: MethodWords = None,
    card: Annotated[
        Path | None,
        typer.Option(
            "--card",
            help="YAML with about, data, licence, limits and metrics of the model; a model file "
            "has its own.",
        ),
    ] = WORK["card"],
    method: ExportedMethod = WORK["method"],
    data: DataRoot = WORK["data"],
    public: Annotated[
        bool,
        typer.Option("--public", help="Let everyone see a new repository; it is private if not."),
    ] = WORK["public"],
) -> None:
    """Upload a run to the Hugging Face Hub as one model file with a model card.

    volumediff push runs/brain hf:OWNER/brain --card card.yaml --method scan

    Log in first with: hf auth login
    """
    from volumediff.config import load

    commit = push_run(
        run,
        place,
        card=None if card is None else load(card),
        method=method,
        overrides=overrides or (),
        data=data,
        public=public,
        report=say,
    )
    out_line(f"{place}: pushed as commit {commit}")
