r"""Masked autoencoding: the network restores the cells of a volume that it does not see,

.. math:: \ell = \frac{\lVert m \odot (F(A((1 - m) \odot x)) - A(x)) \rVert^2}{\sum m}.

A convolution cannot leave cells out as a transformer does: they are filled with background, and
the decoder is the network's own, which a segmentation takes over as well.

References:
    He et al. (2022), MAE, arXiv:2111.06377; Chen et al. (2019), context restoration for medical
    images, Medical Image Analysis 58; Zhou et al. (2021), Models Genesis, arXiv:2004.07882
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.pretexts._base import Pretext, VolumeEncoder
from volumediff.randomness import generator
from volumediff.shapes import Shape

__all__ = ["MAE"]


class MAE(Pretext):
    """Hidden cells of a grid, a share of all, drawn for every sample.

    Arguments:
        features: channels of the encoder's deepest features, which it does not need
        cell: voxels of a cell along each axis
        share: of the cells that are hidden
    """

    decodes: ClassVar[bool] = True

    def __init__(self, features: int, *, cell: int = 8, share: float = 0.6) -> None:
        super().__init__()
        if cell < 1 or not 0 < share < 1:
            raise ValueError(
                f"expected cells of at least 1 voxel and a share in (0, 1), got {cell} and "
                f"{share:g}"
            )
        self.cell, self.share = cell, share

    def hidden(self, shape: Shape, key: int) -> Float[Tensor, "1 d h w"]:
        """1 in hidden cells."""
        d, h, w = (-(-n // self.cell) for n in shape)
        order = torch.randperm(d * h * w, generator=generator(key, "cells"))
        mask = torch.zeros(d * h * w)
        mask[order[: max(1, round(self.share * len(order)))]] = 1
        grown = mask.view(1, d, h, w)
        for axis, n in enumerate(shape, start=1):
            grown = grown.repeat_interleave(self.cell, dim=axis).narrow(axis, 0, n)
        return grown

    def loss(
        self, encoder: VolumeEncoder, x: Float[Tensor, "b c d h w"], keys: Sequence[int]
    ) -> Float[Tensor, "b"]:
        d, h, w = x.shape[2:]
        m = torch.stack([self.hidden((d, h, w), key) for key in keys]).to(x)
        return encoder.restored(x, m)
