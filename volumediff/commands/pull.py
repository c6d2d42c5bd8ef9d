"""`volumediff pull`: a run from the Hugging Face Hub."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.api.hub import pull as pull_run
from volumediff.commands._options import HubModel, out_line, say
from volumediff.commands._written import WrittenFiles

__all__ = ["pull"]


def pull(
    place: HubModel,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the new run.")],
) -> None:
    """Download a run that was pushed to the Hugging Face Hub, and verify it.

    volumediff pull hf:OWNER/brain -o runs/brain
    """
    written = WrittenFiles(output)
    run = pull_run(place, output, report=say)
    card = run.card
    assert card is not None, "it comes from a model file"
    out_line(f"{output}: {card.name}, method {card.method}, licence {card.licence}")
    for found in card.imported:
        out_line(found.line)
    written.finish(then=f"volumediff localize INPUT --run {output} -o out/")
