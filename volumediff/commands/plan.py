"""`volumediff plan`."""

import math
from pathlib import Path
from typing import Annotated

import typer

from volumediff.commands._options import (
    Config,
    Json,
    Mode,
    ModeOption,
    Size,
    Words,
    print_json,
    say,
)
from volumediff.errors import UsageError

__all__ = ["plan"]


def plan(
    config: Config,
    overrides: Words = None,
    vram: Annotated[float | None, typer.Option("--vram", help="Memory of the card in GB.")] = None,
    shape: Size = None,
    mode: ModeOption = Mode.train,
    as_json: Json = False,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="Write the configuration with the chosen policy."),
    ] = None,
) -> None:
    """Predict memory without data or GPU, and choose the fastest policy that fits a card.

    volumediff plan wavelet_256 --vram 8 -o small.yaml
    """
    from volumediff.commands._tables import policies
    from volumediff.planning.planner import at_shape
    from volumediff.planning.planner import plan as look
    from volumediff.settings.run_config import load_run_config
    from volumediff.storage.atomic import write_text

    if vram is not None and not 0 < vram < math.inf:
        raise UsageError(f"--vram {vram:g}: expected the card's memory in GB, above 0.")
    if out is not None and vram is None:
        raise UsageError("-o writes the policy that fits a card: give its memory with --vram GB.")
    wanted = at_shape(load_run_config(config, overrides or []), shape)
    found = look(wanted, mode=mode.value, vram_gb=vram)
    if as_json:
        print_json({"config": config, **found.to_json()})
    else:
        policies(found)
    if found.fits is False:
        raise typer.Exit(1)
    if out is not None:
        write_text(out, found.config.to_yaml(f"{config} with the policy for {vram:g} GB."))
        say(f"wrote {out}; train with: volumediff train {out} data.root=DATA")
