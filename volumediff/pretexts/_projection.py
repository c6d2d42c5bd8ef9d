"""The perceptron between features and the vectors that are compared.

The papers normalise inside it over the batch, which would mix samples; here it is done over the
channels of each vector.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

__all__ = ["Projection", "unit"]


class Projection(nn.Module):
    """Two linear layers with normalisation and ReLU between.

    Arguments:
        inputs, hidden, outputs: numbers of channels
    """

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )

    def forward(self, features: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
        return self.layers(features)


def unit(vectors: Float[Tensor, "*b n"]) -> Float[Tensor, "*b n"]:
    """The vectors at length 1."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)
