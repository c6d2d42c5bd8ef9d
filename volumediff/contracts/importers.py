"""The contract of importers: foreign checkpoints are taken whole or refused, in one line."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from volumediff.contracts.requirements import built, refused, require
from volumediff.errors import DataError
from volumediff.importers._base import ForeignCheckpoint, Importer, Origin

__all__ = ["check_importer"]


def check_importer(
    cls: type, *, tensors: Mapping[str, Tensor] | None = None, **arguments: Any
) -> None:
    """Refuses what is not of its kind; with an example, reads it without taking from it.

    Arguments:
        tensors: a checkpoint of this kind, name -> tensor; small widths will do
    """
    importer: Importer = built(cls, arguments)
    for other in ({}, {"some.weight": torch.zeros(3, 3), "some.bias": torch.zeros(3)}):
        text = f"A checkpoint of {len(other)} foreign tensors must be refused with a DataError."
        refused(lambda o=other: importer.config(ForeignCheckpoint(o)), text, DataError)
    if tensors is None:
        return
    source = ForeignCheckpoint(tensors)
    tree = importer.config(source)
    require(set(source.left) == set(tensors), "config takes tensors: it may look at shapes alone.")
    origin = importer.origin(source)
    require(isinstance(origin, Origin), f"origin gives {type(origin).__name__}, not an Origin.")
    require(bool(origin.name and origin.address), "The origin has no name or no address.")
    require(isinstance(tree, dict) and bool(tree), "config gives no configuration.")
    require(
        importer.config(ForeignCheckpoint(tensors)) == tree,
        "config gives another run the second time.",
    )
    shapes = {name: torch.zeros(tuple(value.shape)) for name, value in tensors.items()}
    require(
        importer.config(ForeignCheckpoint(shapes)) == tree, "The configuration depends on values."
    )
