"""`volumediff profile`: memory and time of a few real steps."""

from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import (
    Config,
    ConfigWords,
    Json,
    Mode,
    ModeOption,
    Size,
    print_json,
)

__all__ = ["profile"]


def profile(
    config: Config,
    overrides: ConfigWords = None,
    steps: Annotated[
        int,
        typer.Option(
            "--steps", min=0, help="Number of timed steps; 0 runs the traced step alone."
        ),
    ] = 3,
    shape: Size = None,
    mode: ModeOption = Mode.train,
    snapshot: Annotated[
        Path,
        typer.Option(
            "--snapshot", help="File for the state of CUDA's allocator, if memory runs out."
        ),
    ] = Path("memory_snapshot.pickle"),
    as_json: Json = False,
) -> None:
    """Run a few steps on random data: memory and seconds per stage, beside the plan's numbers."""
    from volumediff.commands._tables import profiled
    from volumediff.planning.planner import at_shape
    from volumediff.planning.profile import profile as work
    from volumediff.settings.run_config import load_run_config

    wanted = at_shape(load_run_config(config, overrides or []), shape)
    found = work(wanted, mode=mode.value, steps=steps, snapshot=snapshot)
    if as_json:
        print_json({"config": config, **found.to_json()})
    else:
        profiled(found)
