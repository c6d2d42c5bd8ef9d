r"""The encoder half of the U-Net, and two ways to pool what it sees,

.. math:: \ell = W \overline{h} + \frac{1}{r} \log \overline{\exp(r\, U h)},

h the features of the coarsest level and the bars means over its voxels. The mean tells diffuse
changes; the log-mean-exp lies between mean and maximum, so that a lesion of a few voxels is not
drowned in a volume of millions.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.classifiers._base import Classifier
from volumediff.networks._block import ResidualBlock, place
from volumediff.networks._layers import Conv, Linear, NormAct
from volumediff.networks._resample import Down

__all__ = ["Encoder"]


class Encoder(Classifier):
    """Residual blocks without attention, level by level, then both poolings.

    Arguments:
        in_channels, classes: see `Classifier`
        widths: channels per level, finest first
        blocks: residual blocks per level
        norm: `group` normalises over the volume, `voxel` over the channels of each voxel
        groups: channel groups of the group normalisation
        kernel: of the convolutions, per axis
        factor: 1 or 2 per axis, the down-sampling per level
        sharpness: r > 0, towards the mean at 0 and the maximum at infinity

    References:
        Dhariwal and Nichol (2021), Diffusion Models Beat GANs on Image Synthesis,
        arXiv:2105.05233, section 4; Pinheiro and Collobert (2015), From Image-level to Pixel-level
        Labeling with Convolutional Networks, arXiv:1411.6228, eq. 5, for the pooling and r = 5
    """

    def __init__(
        self,
        in_channels: int,
        classes: int,
        *,
        widths: tuple[int, ...] = (32, 64, 128),
        blocks: int = 1,
        norm: Literal["group", "voxel"] = "group",
        groups: int = 8,
        kernel: tuple[int, int, int] = (3, 3, 3),
        factor: tuple[int, int, int] = (2, 2, 2),
        sharpness: float = 5.0,
    ) -> None:
        if not widths or min(widths) < 1 or blocks < 1 or not sharpness > 0:
            raise ValueError(
                "expected at least one level of positive width, one block and sharpness > 0, got "
                f"widths {tuple(widths)}, blocks {blocks} and sharpness {sharpness}"
            )
        super().__init__(in_channels, classes, frequencies=widths[0])
        self.sharpness = sharpness
        self.stem = Conv(in_channels, widths[0], kernel=kernel)
        self.levels = nn.ModuleList()
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            stages = nn.ModuleList(
                ResidualBlock(
                    width,
                    width,
                    embedding=self.embedding.width,
                    kernel=kernel,
                    norm=norm,
                    groups=groups,
                )
                for _ in range(blocks)
            )
            place(level, stages)
            self.levels.append(stages)
            if level + 1 < len(widths):
                self.down.append(Down(width, widths[level + 1], factor=factor, kernel=kernel))
        self.act = NormAct(widths[-1], norm=norm, groups=groups)
        self.mean = Linear(widths[-1], classes, zero=True)
        self.evidence = Linear(widths[-1], classes, zero=True)

    def features(
        self, x: Float[Tensor, "b k d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b o d2 h2 w2"]:
        h = self.stem(x)
        for level, stages in enumerate(self.levels):
            for stage in stages:
                h = stage(h, e)
            if level < len(self.down):
                h = self.down[level](h)
        return self.act(h)

    def pool(self, features: Float[Tensor, "b o d2 h2 w2"]) -> Float[Tensor, "b l"]:
        wide = torch.promote_types(features.dtype, torch.float32)
        voxels = features.to(wide).flatten(2).movedim(1, 2)
        r, n = self.sharpness, voxels.shape[1]
        peak = torch.logsumexp(r * self.evidence(voxels), dim=1) - math.log(n)
        return self.mean(voxels.mean(1)) + peak / r
