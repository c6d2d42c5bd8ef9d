"""Heads made of balls within balls, as label maps with FreeSurfer's numbers, for several tests."""

import numpy as np
import torch

from volumediff.data.freesurfer import structure

SPACING = (2.0, 2.0, 2.0)
# radii in mm: fluid around the brain, cortex, white matter, ventricle; then the left-right split
RADII = {24: 40.0, 3: 36.0, 2: 28.0, 4: 11.0}
NUMBERS = (0, 2, 3, 4, 24, 41, 42, 43, 501)
STRUCTURES = tuple(structure(n) for n in NUMBERS)
OTHER_SIDE = {2: 41, 3: 42, 4: 43}


def head(n=44, spacing=2.0, ventricle=11.0):
    """Numbers (n, n, n) and their indices (1, n, n, n) among NUMBERS; the skull is 501."""
    axis = (torch.arange(n) - (n - 1) / 2) * spacing
    p = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"))
    radius = p.norm(dim=0)
    numbers = torch.zeros((n, n, n), dtype=torch.int64)
    numbers[radius < 43] = 501
    for number, reach in (RADII | {4: ventricle}).items():
        numbers[radius < reach] = number
    for left, right in OTHER_SIDE.items():
        numbers[(numbers == left) & (p[0] > 0)] = right
    indices = torch.from_numpy(np.searchsorted(NUMBERS, numbers.numpy())).to(torch.uint8)
    return numbers, indices[None]
