"""Rotation: which of ten ways round a volume is, upright or turned about one of the axes.

References:
    Gidaris et al. (2018), RotNet, arXiv:1803.07728; Taleb et al. (2020), 3D Self-Supervised
    Methods for Medical Imaging, arXiv:2006.03829, section 3.3, for the ten ways in 3D
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.pretexts._base import Pretext, VolumeEncoder
from volumediff.randomness import uniform

__all__ = ["WAYS", "Rotation", "cube", "turned"]

# The plane that is turned, as axes of the volume, and by how many right angles.
WAYS = ((0, 1, 0), *((i, j, n) for i, j in ((0, 1), (0, 2), (1, 2)) for n in (1, 2, 3)))


def cube(x: Float[Tensor, "c d h w"]) -> Float[Tensor, "c n n n"]:
    """The central cube of a volume, whose turns have its shape."""
    n = min(x.shape[1:])
    starts = [(m - n) // 2 for m in x.shape[1:]]
    return x[(slice(None), *(slice(a, a + n) for a in starts))]


def turned(x: Float[Tensor, "c n n n"], way: int) -> Float[Tensor, "c n n n"]:
    """A cube turned by way number 0 to 9."""
    i, j, times = WAYS[way]
    return x.rot90(times, (i + 1, j + 1))


class Rotation(Pretext):
    """Ten ways, one drawn for every sample; of a volume that is no cube, the central cube.

    Arguments:
        features: channels of the encoder's deepest features
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.head = nn.Linear(features, len(WAYS))

    def loss(
        self, encoder: VolumeEncoder, x: Float[Tensor, "b c d h w"], keys: Sequence[int]
    ) -> Float[Tensor, "b"]:
        """Cross entropy of the way."""
        ways = [int(uniform(key, "way") * len(WAYS)) for key in keys]
        seen = torch.stack([turned(cube(v), way) for v, way in zip(x, ways, strict=True)])
        truth = torch.tensor(ways, device=x.device)
        return F.cross_entropy(self.head(encoder(seen)), truth, reduction="none")
