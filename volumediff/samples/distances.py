"""Distances from the surface of masks, kept in memory by content: masks that augmentation leaves
alone are measured once."""

import hashlib
from collections import OrderedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

__all__ = ["surface_distances_mm"]

BYTES = 2**28  # of distances that a process keeps
_KEPT: OrderedDict[str, Tensor] = OrderedDict()


def surface_distances_mm(
    masks: Bool[Tensor, "l d h w"], *, spacing_mm: tuple[float, float, float]
) -> Float[Tensor, "l d h w"]:
    """Distance of every voxel centre from the nearest voxel on the inner surface of each mask.

    A voxel of a mask is on its surface if one of its six neighbours is not in the mask, or beyond
    the volume. Distances from a mask that is empty are 0: there is no surface.

    Arguments:
        masks: one per label, on the CPU
        spacing_mm: voxel size along d, h, w
    """
    content = hashlib.sha256(masks.numpy().tobytes())
    content.update(repr((tuple(masks.shape), spacing_mm)).encode())
    name = content.hexdigest()
    if name in _KEPT:
        _KEPT.move_to_end(name)
        return _KEPT[name].clone()
    found = torch.stack([_distance(mask, spacing_mm) for mask in masks])
    _KEPT[name] = found
    while len(_KEPT) > 1 and sum(d.numel() * d.element_size() for d in _KEPT.values()) > BYTES:
        _KEPT.popitem(last=False)
    return found.clone()


def _distance(mask: Tensor, spacing_mm: tuple[float, float, float]) -> Tensor:
    from scipy import ndimage

    inside = mask.numpy()
    if not inside.any():
        return torch.zeros(inside.shape)
    surface = inside & ~ndimage.binary_erosion(inside)
    return torch.from_numpy(ndimage.distance_transform_edt(~surface, sampling=spacing_mm)).float()
