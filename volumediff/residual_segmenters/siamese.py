r"""A U-Net with two encoders of the same weights, one for the residual and one for the volume,

.. math:: r_l = E_l(\hat x - x), \quad s_l = E_l(x), \qquad
          h_l = D_l\big(U h_{l+1},\; r_l,\; s_l\big),

E the encoder, D the decoder on features side by side, U the change to the finer grid.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._block import ResidualBlock, place
from volumediff.networks._layers import Conv, NormAct, conv
from volumediff.networks._resample import Down, Up
from volumediff.residual_segmenters._base import ResidualSegmenter

__all__ = ["Siamese"]

Features = list[Float[Tensor, "b _ _ _ _"]]


class Siamese(ResidualSegmenter):
    """Residual blocks without attention, level by level; ceil(size / 2) per level, any size.

    Arguments:
        channels: see `ResidualSegmenter`
        widths: channels per level, finest first
        blocks: residual blocks per level, in the encoder and again in the decoder
        norm: `group` normalises over the volume; `voxel` over the channels of each voxel, for
            networks that are trained on crops
        groups: channel groups of the group normalisation
        kernel: of the convolutions, per axis
        factor: 1 or 2 per axis, the down-sampling per level

    References:
        Behrendt et al. (2024), Combining Reconstruction-based Unsupervised Anomaly Detection with
        Supervised Segmentation for Brain MRIs, MIDL
    """

    def __init__(
        self,
        channels: int,
        *,
        widths: tuple[int, ...] = (32, 64, 128, 128),
        blocks: int = 1,
        norm: Literal["group", "voxel"] = "group",
        groups: int = 8,
        kernel: tuple[int, int, int] = (3, 3, 3),
        factor: tuple[int, int, int] = (2, 2, 2),
    ) -> None:
        if not widths or min(widths) < 1 or blocks < 1:
            raise ValueError(
                "expected at least one level of positive width and one block, got widths "
                f"{tuple(widths)} and blocks {blocks}"
            )
        super().__init__(channels)

        def stages(level: int, inputs: int) -> nn.ModuleList:
            sizes = [inputs] + [widths[level]] * (blocks - 1)
            made = nn.ModuleList(
                ResidualBlock(n, widths[level], kernel=kernel, norm=norm, groups=groups)
                for n in sizes
            )
            place(level, made)
            return made

        last = len(widths) - 1
        self.stem = Conv(channels, widths[0], kernel=kernel)
        self.encoder = nn.ModuleList(stages(i, w) for i, w in enumerate(widths))
        self.down = nn.ModuleList(
            Down(widths[i], widths[i + 1], factor=factor, kernel=kernel) for i in range(last)
        )
        # Both features, and below the coarsest level nothing comes from.
        self.decoder = nn.ModuleList(stages(i, (2 + (i < last)) * w) for i, w in enumerate(widths))
        self.up = nn.ModuleList(Up(widths[i + 1], widths[i], factor=factor) for i in range(last))
        self.act = NormAct(widths[0], norm=norm, groups=groups)
        self.head = Conv(widths[0], 1, kernel=kernel, zero=True)

    def body(self, pair: Float[Tensor, "b c2 d h w"]) -> Float[Tensor, "b 1 d h w"]:
        # Slabs are not cut along channels: the half that a stem must not see has zero weights.
        weight, bias = self.stem.weight, self.stem.bias
        none = torch.zeros_like(weight)
        residual, volume = (
            self.features(conv(pair, w, bias, stride=self.stem.stride, padding=self.stem.halo))
            for w in (torch.cat((weight, none), dim=1), torch.cat((none, weight), dim=1))
        )
        h = None
        for level in reversed(range(len(self.decoder))):
            both = torch.cat((residual[level], volume[level]), dim=1)
            first, *rest = self.decoder[level]
            if h is None:
                h = first(both)
            else:
                h = first(self.up[level](h, both.shape[2:]), None, None, both)
            for stage in rest:
                h = stage(h)
        return self.head(self.act(h))

    def features(self, h: Float[Tensor, "b w d h w2"]) -> Features:
        """The encoder on a stem's output: its features per level, finest first."""
        found = []
        for level, stages in enumerate(self.encoder):
            for stage in stages:
                h = stage(h)
            found.append(h)
            if level < len(self.down):
                h = self.down[level](h)
        return found
