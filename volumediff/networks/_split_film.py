r"""FiLM coefficients of an embedding in two parts, one modulation after the other,

.. math:: (h\,(1 + s_1) + b_1)\,(1 + s_2) + b_2 = h\,(1 + s) + b, \qquad
          1 + s = (1 + s_1)(1 + s_2), \quad b = b_1 (1 + s_2) + b_2,

so that a block modulates once, whatever the number of parts.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._layers import Linear

__all__ = ["SplitFilm"]


class SplitFilm(nn.Module):
    """From [time, condition] of `SplitEmbedding` to (s, b); starts as the identity.

    Arguments:
        parts: lengths of both; a condition of length 0 modulates nothing
        width: twice the channels

    References:
        Perez et al. (2018), FiLM, arXiv:1709.07871
    """

    def __init__(self, parts: tuple[int, int], width: int) -> None:
        super().__init__()
        # As of the linear layer that it stands for: how much of the embedding a block hands over.
        self.parts, self.in_features = parts, sum(parts)
        self.time = Linear(parts[0], width, zero=True)
        self.condition = Linear(parts[1], width, zero=True) if parts[1] else None

    @property
    def bias(self) -> nn.Parameter:
        """The constant part."""
        return self.time.bias

    def forward(self, e: Float[Tensor, "b n"]) -> Float[Tensor, "b c2"]:
        timed, told = e.split(self.parts, dim=1)
        film = self.time(timed)
        if self.condition is None:
            return film
        first_gain, first_offset = film.chunk(2, dim=1)
        gain, offset = self.condition(F.silu(told)).chunk(2, dim=1)
        gain = 1 + gain
        return torch.cat(
            (
                torch.addcmul(gain - 1, first_gain, gain),
                torch.addcmul(offset, first_offset, gain),
            ),
            dim=1,
        )
