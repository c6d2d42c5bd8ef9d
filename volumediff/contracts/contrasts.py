"""The contract of contrasts: a keyed brightness for each structure, the same for equal names."""

from typing import Any

import torch

from volumediff.contracts.requirements import built, equal, require
from volumediff.data.contrasts import Contrast
from volumediff.data.freesurfer import Structure, structure

__all__ = ["check_contrast"]

KEYS = range(12)
# both sides of the brain: white matter, cortex, ventricle, thalamus, and what has no other side
NUMBERS = (2, 3, 4, 10, 41, 42, 43, 49, 14, 16, 24)


def check_contrast(cls: type, **arguments: Any) -> None:
    """Means and deviations from 0 on, keyed, and functions of names rather than of places."""
    contrast: Contrast = built(cls, arguments)
    structures = [s for s in map(structure, NUMBERS) if s is not None]
    results = set()
    for key in KEYS:
        table = contrast(structures, key)
        require(tuple(table.shape) == (len(structures), 2), f"It has shape {tuple(table.shape)}.")
        require(table.dtype == torch.float32, f"It is in {table.dtype}, not in float32.")
        require(table.isfinite().all(), "A mean or deviation is not finite.")
        require(float(table.min()) >= 0, "A mean or deviation is negative.")
        require(float(table[:, 0].max()) > 0, "Every structure is black.")
        equal(contrast(structures, key), table, "The same key gives another contrast.")
        _by_name(contrast, structures, key)
        results.add(table.numpy().tobytes())
    require(len(results) > 3, "All keys give the same contrast.")


def _by_name(contrast: Contrast, structures: list[Structure], key: int) -> None:
    """Neither the order of structures nor the presence of others decides anything."""
    table = contrast(structures, key)
    turned = contrast(structures[::-1], key).flip(0)
    equal(turned, table, "The brightness of a structure depends on its place in the list.")
    alone = torch.cat([contrast([s], key) for s in structures])
    equal(alone, table, "The brightness of a structure depends on which others there are.")
