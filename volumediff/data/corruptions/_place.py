"""Where a corruption is put, and what it leaves behind: the pieces that all of them share."""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from volumediff import randomness

__all__ = [
    "box",
    "foreground_voxel",
    "foreign",
    "inside",
    "length_mm",
    "offsets_mm",
]

Box = tuple[slice, slice, slice]


def foreground_voxel(foreground: Bool[Tensor, "1 d h w"], *parts: int | str) -> Sequence[int]:
    """A voxel of the foreground, each with the same chance.

    Raises:
        ValueError: there is none
    """
    places = foreground.flatten().nonzero()[:, 0]
    if not len(places):
        raise ValueError("foreground: expected some voxels, got none; check the mask.")
    place = int(places[int(randomness.uniform(*parts) * len(places))])
    _, h, w = foreground.shape[1:]
    return place // (h * w), place // w % h, place % w


def box(
    shape: tuple[int, int, int], centre: Sequence[int], half: Sequence[float], *, margin: int = 0
) -> Box:
    """The part of a box that is in the volume, at least one voxel.

    Arguments:
        shape: of the volume
        centre: a voxel
        half: half sides in voxels
        margin: voxels left free at both ends of an axis that has more than those
    """
    window = []
    for middle, h, n in zip(centre, half, shape, strict=True):
        free = margin if n > 2 * margin else 0
        first = min(max(round(middle - h), free), n - free - 1)
        window.append(slice(first, max(min(round(middle + h), n - free), first + 1)))
    return window[0], window[1], window[2]


def length_mm(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> float:
    """The longest side of a volume: sizes are shares of it, so that slices have them too."""
    return max(n * s for n, s in zip(shape, spacing_mm, strict=True))


def offsets_mm(
    window: Box, centre: Sequence[int], spacing_mm: tuple[float, float, float], like: Tensor
) -> Float[Tensor, "3 _ _ _"]:
    """Distance of each voxel of a window from a voxel, along the axes."""
    axes = [
        (torch.arange(part.start, part.stop, device=like.device) - middle) * mm
        for part, middle, mm in zip(window, centre, spacing_mm, strict=True)
    ]
    return torch.stack(torch.meshgrid(*axes, indexing="ij")).to(like)


def foreign(
    donor: Tensor, x: Float[Tensor, "c d h w"], window: Box, source: Sequence[int], scale: float
) -> Float[Tensor, "c _ _ _"]:
    """A patch of the donor around another voxel, resized to the window by linear interpolation.

    Arguments:
        donor: volume of the shape of x
        x: whose dtype and device the patch gets
        window: where it is going to be
        source: middle of the patch in the donor; outside, the border value goes on
        scale: size of the structures relative to the donor's
    """
    patch = donor.to(x)
    for axis, (part, middle) in enumerate(zip(window, source, strict=True)):
        n, size = patch.shape[axis + 1], part.stop - part.start
        steps = torch.arange(size, dtype=torch.float64) - (size - 1) / 2
        place = (middle + steps / scale).clamp(0, n - 1)
        low = place.floor().long().clamp(max=max(n - 2, 0))
        high = (low + 1).clamp(max=n - 1)
        share = (place - low).to(x).view([-1 if a == axis else 1 for a in range(3)])
        low, high = low.to(x.device), high.to(x.device)
        patch = torch.lerp(
            patch.index_select(axis + 1, low), patch.index_select(axis + 1, high), share
        )
    return patch


def inside(
    x: Float[Tensor, "c d h w"],
    changed: Float[Tensor, "c d h w"],
    amount: Float[Tensor, "1 d h w"],
    foreground: Bool[Tensor, "1 d h w"],
) -> tuple[Float[Tensor, "c d h w"], Float[Tensor, "1 d h w"]]:
    """The change in the foreground, in [-1, 1], and the amount where there is one."""
    changed = torch.where(foreground, changed.clamp(-1, 1), x)
    return changed, torch.where((changed != x).any(0, keepdim=True), amount, 0.0)
