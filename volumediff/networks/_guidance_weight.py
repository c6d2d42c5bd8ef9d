r"""The weight of a guidance in the embedding of a network that has learnt what guidance makes,

.. math:: e \leftarrow e + M(\gamma(w / 10)),

with the Fourier features of the time and M a perceptron.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._embedding import fourier
from volumediff.networks._layers import Linear

__all__ = ["GuidanceWeight"]

FREQUENCIES = 64
SCALE = 10.0  # weights are of this size, times at most 1


class GuidanceWeight(nn.Module):
    """M, which starts as zero: a network begins as what it was without the weight.

    Arguments:
        width: of the embedding

    References:
        Meng et al. (2023), On Distillation of Guided Diffusion Models, arXiv:2210.03142, sec. 3.1
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inside, self.out = Linear(FREQUENCIES, width), Linear(width, width, zero=True)

    def forward(self, weight: Float[Tensor, "b"]) -> Float[Tensor, "b w"]:
        return self.out(F.silu(self.inside(fourier(weight / SCALE, FREQUENCIES))))
