r"""Patch discriminator and hinge losses,

.. math:: L_D = E[\max(0, 1 - D(x))] + E[\max(0, 1 + D(\hat x))], \qquad L_G = -E[D(\hat x)],

with one logit per patch: the receptive field judges local texture, which an L1 loss blurs.
"""

from itertools import pairwise

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.autoencoders._codec import kernel_and_norm
from volumediff.networks._layers import Conv, Norm
from volumediff.networks._precision import wide

__all__ = ["PatchGAN", "discriminator_loss", "generator_loss"]

# pix2pix (arXiv:1611.07004) uses 0.2 for the negative slope.
SLOPE = 0.2


class PatchGAN(nn.Module):
    """Strided convolutions with group normalization: batch statistics mean little at batch size 1.

    Arguments:
        channels: channels of the volume
        widths: channels of the layers; each halves the grid, a one-slice axis stays
        planar: kernels, strides and statistics within slices only

    References:
        Isola et al. (2017), Image-to-Image Translation with Conditional Adversarial Networks,
        arXiv:1611.07004; Lim and Ye (2017), Geometric GAN (hinge), arXiv:1705.02894
    """

    def __init__(
        self, channels: int, *, widths: tuple[int, ...] = (32, 64, 128), planar: bool = False
    ) -> None:
        super().__init__()
        kernel, kind = kernel_and_norm("group", planar=planar)
        stride = (1 if planar else 2, 2, 2)
        sizes = (channels, *widths)
        self.convs = nn.ModuleList(
            Conv(c, k, kernel=kernel, stride=stride) for c, k in pairwise(sizes)
        )
        # none after the first layer, which has to see intensities as they are
        self.norms = nn.ModuleList(Norm(k, kind=kind) for k in widths[1:])
        self.head = Conv(widths[-1], 1, kernel=kernel)

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b 1 d2 h2 w2"]:
        x = F.leaky_relu(self.convs[0](x), SLOPE)
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = F.leaky_relu(norm(conv(x)), SLOPE)
        return self.head(x)


def discriminator_loss(
    real: Float[Tensor, "b 1 d h w"], fake: Float[Tensor, "b 1 d h w"]
) -> Float[Tensor, ""]:
    """The hinge loss L_D of logits on real and on reconstructed volumes."""
    return F.relu(1 - wide(real)).mean() + F.relu(1 + wide(fake)).mean()


def generator_loss(fake: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, ""]:
    """The loss L_G of the logits on reconstructed volumes."""
    return -wide(fake).mean()
