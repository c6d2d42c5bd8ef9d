"""`volumediff draw`: healthy volumes from label maps."""

from typing import Annotated

import typer

from volumediff.api.drawing import draw as work
from volumediff.commands._options import Config, ConfigWords, OutFolder, Seed, defaults
from volumediff.commands._written import WrittenFiles

__all__ = ["draw"]

WORK = defaults(work)


def draw(
    config: Config,
    output: OutFolder,
    overrides: ConfigWords = None,
    each: Annotated[
        int, typer.Option("-n", "--each", min=1, help="Number of volumes per label map.")
    ] = WORK["each"],
    seed: Seed = WORK["seed"],
) -> None:
    """Draw healthy volumes from label maps, where no healthy volumes of a contrast are at hand.

    volumediff draw flair data.drawn.label_maps=LABEL_MAPS -o healthy/
    """
    written = WrittenFiles(output)
    table = work(config, output, each=each, overrides=overrides or [], seed=seed)
    written.finish(then=f"volumediff train {config} data.root={table.parent}")
