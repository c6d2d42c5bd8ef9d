"""The contract of post-processing: maps stay maps and masks stay masks, volume by volume."""

from typing import Any

import torch
from torch import Tensor

from volumediff.anomaly.post import MASK, Post
from volumediff.contracts.requirements import built, equal, require, untouched
from volumediff.contracts.scenes import INSIDE, LESION, SHAPE, SPACING
from volumediff.randomness import normal

__all__ = ["check_post"]


def check_post(cls: type, **arguments: Any) -> None:
    """A rank on one side of the threshold, and what goes with it."""
    post: Post = built(cls, arguments)
    require(isinstance(post.rank, int) and post.rank != MASK, f"rank {post.rank} is no place.")
    inside = INSIDE.expand(2, -1, -1, -1, -1)
    noise = normal((2, 1, *SHAPE), "contracts", "map").abs() * inside
    maps = noise + 3 * LESION
    value = maps if post.rank < MASK else (maps > 1) & inside

    def done(value: Tensor, foreground: Tensor = inside) -> Tensor:
        return post(value, foreground=foreground, spacing_mm=SPACING)

    result = untouched({"the map": value}, lambda: done(value))
    require(result.shape == value.shape, f"The result has shape {tuple(result.shape)}.")
    require(result.dtype == value.dtype, f"{value.dtype} becomes {result.dtype}.")
    require(torch.equal(done(value), result), "The same map gives another result.")
    require(not bool(result[~inside].any()), "The result is not zero outside the foreground.")
    for i in range(2):
        alone = done(value[i : i + 1], inside[i : i + 1])
        equal(alone, result[i : i + 1], "A volume's result depends on its batch.", atol=1e-6)
    if post.idempotent:
        require(torch.equal(done(result), result), "It says that a second time changes nothing.")
    nothing = torch.zeros_like(value)
    require(torch.equal(done(nothing), nothing), "An empty map or mask does not stay empty.")
    if post.rank < MASK:
        require(result.isfinite().all() and float(result.min()) >= 0, "The map became negative.")
        require(
            float(result.max()) <= float(value.max()) * (1 + 1e-5),
            "Some value of the map rises above its maximum.",
        )
        equal(
            done(2 * value), 2 * result, "Twice the map does not give twice the result.", rtol=1e-4
        )
