"""Healthy volumes from label maps, for Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from volumediff.api.arguments import Place
from volumediff.api.training import run_config
from volumediff.errors import UsageError

__all__ = ["draw"]


def draw(
    config: Place | Mapping[str, Any],
    output: Place,
    *,
    each: int = 8,
    overrides: Sequence[str] = (),
    seed: int = 0,
    **sections: Any,
) -> Path:
    """Draws healthy volumes from label maps and writes them as NIfTI, with a table of the cases.

    Arguments:
        config: shipped name, YAML file or nested dictionaries; its `data.drawn`, spacing and shape
            are taken
        output: folder that is new or empty
        each: number of volumes per label map; they count as one patient
        overrides: `key=value` words
        seed: of everything that is drawn
        sections: overrides as keyword arguments

    Returns:
        the table, a data set to train on

    Raises:
        UsageError: the configuration draws nothing or has no grid, or the folder has files
        DataError: a label map is refused
    """
    from volumediff.samples.drawn_files import draw_files

    if each < 1:
        raise UsageError(f"each: expected at least one volume per label map, got {each}.")
    return draw_files(run_config(config, overrides, sections), Path(output), each, seed=seed)
