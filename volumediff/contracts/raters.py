"""The contract of raters: one label map of values that somebody gave, drawn by the key alone."""

from typing import Any

import torch

from volumediff.contracts.requirements import built, equal, require
from volumediff.raters import Rater

__all__ = ["check_rater"]


def check_rater(cls: type, **arguments: Any) -> None:
    """Readers who agree are believed, values are never made up, one reader is enough."""
    rater: Rater = built(cls, arguments)
    readers = torch.zeros((4, 5, 4, 3), dtype=torch.uint8)
    readers[:, 1:4, 1:3, 1], readers[2:, 0], readers[3, 4], readers[0, 4, 0] = 2, 5, 2, 7
    label = readers[:1].clone()
    kept = readers.clone()
    agreed = (readers == readers[:1]).all(0)
    found = [rater.opinion(label, readers, key=key) for key in range(24)]
    require(torch.equal(readers, kept), "The maps of the readers are changed.")
    for opinion in found:
        map_ = opinion.label
        require(
            map_.shape == (1, 5, 4, 3) and map_.dtype == torch.uint8,
            f"The label map has shape {tuple(map_.shape)} and dtype {map_.dtype}.",
        )
        equal(map_[0][agreed], readers[0][agreed], "Readers who agree are not believed.")
        require(
            bool(((map_ == readers) | (map_ == 0)).any(0).all()),
            "A voxel has a value that no reader gave it.",
        )
        require((opinion.level is not None) == rater.tells, "tells and the level disagree.")
        require(opinion.level is None or 0 < opinion.level <= 1, "The level leaves (0, 1].")
    for key, opinion in enumerate(found):
        torch.manual_seed(key)
        again = rater.opinion(label, readers, key=key)
        same = torch.equal(again.label, opinion.label) and again.level == opinion.level
        require(same, "The same key gives another label map.")
    alone = rater.opinion(label, None, key=1)
    equal(alone.label, label, "The map of the only reader is changed.")
    require((rater.consensus_level(4) is not None) == rater.tells, "tells and the level disagree.")
