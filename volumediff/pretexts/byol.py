r"""BYOL: a view predicts what an averaged copy of the encoder says about another view,

.. math:: \ell = 2 - 2 \cos\big(h(f_\theta(x_1)), f_{\theta'}(x_2)\big) + \text{the same with }
          x_1 \leftrightarrow x_2, \qquad m = 1 - (1 - m_0)\, \frac{1 + \cos \pi p}{2},

with p the share of the training that is done. There are no negatives, and no batch is needed.

References:
    Grill et al. (2020), BYOL, arXiv:2006.07733; Richemond et al. (2020), arXiv:2010.10241: it
    works without statistics over the batch
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from volumediff.pretexts._base import Gather, Pretext, VolumeEncoder
from volumediff.pretexts._momentum import MomentumCopy
from volumediff.pretexts._projection import Projection, unit
from volumediff.pretexts._views import Views

__all__ = ["BYOL"]


class BYOL(Pretext):
    """Prediction of an averaged copy.

    Arguments:
        features: channels of the encoder's deepest features
        momentum: m_0 of the averaged copy at the beginning; it ends at 1
        width: channels of the vectors that are compared
        share: length of a crop along each axis, as a share of the volume's
    """

    def __init__(
        self, features: int, *, momentum: float = 0.99, width: int = 128, share: float = 0.75
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"expected a momentum in [0, 1), got {momentum:g}")
        self.momentum = momentum
        self.views = Views(share=share)
        self.head = Projection(features, max(features, width), width)
        self.predictor = Projection(width, max(features, width), width)
        self.encoder_copy, self.head_copy = MomentumCopy(), MomentumCopy()

    def begin(self, encoder: VolumeEncoder) -> None:
        self.encoder_copy.follow(encoder)
        self.head_copy.follow(self.head)

    def loss(
        self, encoder: VolumeEncoder, x: Float[Tensor, "b c d h w"], keys: Sequence[int]
    ) -> Float[Tensor, "b"]:
        views = torch.stack(
            [
                self.views.view(v, self.views.start(v, key, i), key, i)
                for i in range(2)
                for v, key in zip(x, keys, strict=True)
            ]
        )
        predicted = unit(self.predictor(self.head(encoder(views))))
        target = unit(self.head_copy.called(self.head, self.encoder_copy.called(encoder, views)))
        other = torch.cat(target.chunk(2)[::-1])
        one, two = (2 - 2 * (predicted * other).sum(1)).chunk(2)
        return one + two

    @torch.no_grad()
    def stepped(self, encoder: VolumeEncoder, share: float, gather: Gather) -> None:
        """The copies follow, ever more slowly."""
        momentum = 1 - (1 - self.momentum) * (1 + math.cos(math.pi * share)) / 2
        self.encoder_copy.update(encoder, momentum)
        self.head_copy.update(self.head, momentum)
