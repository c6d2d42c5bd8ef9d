r"""Mapping of a random latent into the embedding of a network, which then makes a sample of
p(z_0 | z_t) and no mean,

.. math:: e \leftarrow e + M\big(\zeta / \sqrt{\langle \zeta^2 \rangle}\big), \qquad
          \zeta \sim N(0, 1)^n,

with M a perceptron. e scales and shifts the normalisations of all residual blocks.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._layers import Linear

__all__ = ["LatentMapping"]

LAYERS = 3  # of the perceptron before its last linear map, as published
TINY = 1e-8


class LatentMapping(nn.Module):
    """M, which starts as zero: a network begins as what it was without the latent.

    Arguments:
        length: n, numbers of the latent
        width: of the embedding

    References:
        Xiao et al. (2022), Tackling the Generative Learning Trilemma with Denoising Diffusion
        GANs, arXiv:2112.07804, section 4.2 and appendix C; n = 100
    """

    def __init__(self, length: int, width: int) -> None:
        super().__init__()
        self.length = length
        sizes = (length, *(width,) * (LAYERS - 1))
        self.layers = nn.ModuleList(Linear(size, width) for size in sizes)
        self.out = Linear(width, width, zero=True)

    def forward(self, latent: Float[Tensor, "b n"]) -> Float[Tensor, "b w"]:
        h = latent * (latent.square().mean(1, keepdim=True) + TINY).rsqrt()
        for layer in self.layers:
            h = F.silu(layer(h))
        return self.out(h)
