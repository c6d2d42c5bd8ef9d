"""What U-Nets share: the names of their levels, and skips after every layer of the encoder."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._block import ResidualBlock, place

__all__ = ["Tap", "descend", "enlarge", "level_taps", "place_levels"]


@dataclass(frozen=True, eq=False)
class Tap:
    """A place of a network whose tensor serves as features.

    Arguments:
        module: whose output it is, (b, c, d, h, w)
        channels: c
    """

    module: nn.Module
    channels: int


def level_taps(
    encoder: nn.ModuleList, middle: nn.ModuleList, decoder: nn.ModuleList
) -> dict[str, Tap]:
    """The last stage of every level, in the order in which they run.

    encoder.0 is the finest level on the way down, decoder.0 the finest on the way up.

    Arguments:
        encoder, middle, decoder: stages with a residual `block` each, finest level first
    """
    last = {f"encoder.{i}": stages[-1] for i, stages in enumerate(encoder)}
    last["middle"] = middle[-1]
    last |= {f"decoder.{i}": decoder[i][-1] for i in reversed(range(len(decoder)))}
    return {name: Tap(stage, stage.block.out_channels) for name, stage in last.items()}


def descend(
    h: Float[Tensor, "b c d h w"],
    e: Float[Tensor, "b n"],
    encoder: nn.ModuleList,
    down: nn.ModuleList,
) -> tuple[Tensor, list[Tensor]]:
    """The encoder on the stem's output: what it ends with, and all skips, the stem's first."""
    skips = [h]
    for level, stages in enumerate(encoder):
        for stage in stages:
            h = stage(h, e)
            skips.append(h)
        if level < len(down):
            change = down[level]
            h = change(h, e) if isinstance(change, ResidualBlock) else change(h)
            skips.append(h)
    return h, skips


def enlarge(
    up: nn.Module, h: Tensor, e: Float[Tensor, "b n"], size: tuple[int, ...]
) -> Float[Tensor, "b c d h w"]:
    """A change to the next finer grid, by a residual block or without one."""
    return up(h, e, size) if isinstance(up, ResidualBlock) else up(h, size)


def place_levels(
    encoder: nn.ModuleList,
    middle: nn.ModuleList,
    decoder: nn.ModuleList,
    down: nn.ModuleList,
    up: nn.ModuleList,
) -> None:
    """Says on which level every part stands; changes of the grid belong to the finer one."""
    for level in range(len(encoder)):
        place(level, encoder[level], decoder[level])
        place(level, *down[level : level + 1], *up[level : level + 1])
    place(len(encoder) - 1, middle)
