"""`volumediff schema`: the JSON schema of configurations."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import out_line
from volumediff.commands._written import WrittenFiles

__all__ = ["schema"]


def schema(
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="JSON file; the standard output if none is given."),
    ] = None,
) -> None:
    """Write the JSON schema of run configurations, with which editors complete and check them.

    volumediff schema -o volumediff.schema.json
    """
    from volumediff.settings.json_schema import json_schema
    from volumediff.storage.atomic import write_text

    if output is None:
        out_line(json_schema().rstrip())
        return
    written = WrittenFiles(output)
    write_text(output, json_schema())
    written.finish(
        then=f"write `# yaml-language-server: $schema={output.name}` into the first line of a "
        "configuration beside it"
    )
