r"""MoCo: a view is told from a queue of earlier ones by an averaged copy of the encoder,

.. math:: \ell = -\log \frac{e^{q \cdot k_+ / \tau}}{e^{q \cdot k_+ / \tau} +
          \sum_{k \in Q} e^{q \cdot k / \tau}}, \qquad q = f_\theta(x_1), \quad
          k_+ = f_{\theta'}(x_2).

After every step the keys of its samples enter the queue, in the order of the samples, and the
oldest leave. Normalisation over the batch, which the paper shuffles between processes, there is
none here.

References:
    He et al. (2020), Momentum Contrast, arXiv:1911.05722; Chen et al. (2020), MoCo v2,
    arXiv:2003.04297, for the perceptron and the temperature
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff.pretexts._base import Gather, Pretext, VolumeEncoder
from volumediff.pretexts._momentum import MomentumCopy
from volumediff.pretexts._projection import Projection, unit
from volumediff.pretexts._views import Views
from volumediff.randomness import normal

__all__ = ["MoCo"]


class MoCo(Pretext):
    """Contrast against a queue.

    Arguments:
        features: channels of the encoder's deepest features
        queue: number of earlier keys
        momentum: m of the averaged copy
        temperature: τ
        width: channels of the vectors that are compared
        share: length of a crop along each axis, as a share of the volume's
    """

    def __init__(
        self,
        features: int,
        *,
        queue: int = 1024,
        momentum: float = 0.99,
        temperature: float = 0.2,
        width: int = 128,
        share: float = 0.75,
    ) -> None:
        super().__init__()
        if queue < 1 or not 0 <= momentum < 1 or not temperature > 0:
            raise ValueError(
                f"expected a queue of at least 1, a momentum in [0, 1) and a temperature above 0, "
                f"got {queue}, {momentum:g} and {temperature:g}"
            )
        self.momentum, self.temperature = momentum, temperature
        self.views = Views(share=share)
        self.head = Projection(features, max(features, width), width)
        self.encoder_copy, self.head_copy = MomentumCopy(), MomentumCopy()
        device = self.head.layers[0].weight.device
        self.register_buffer("queue", unit(normal((queue, width), "moco", "queue", device=device)))
        self.fresh: list[Tensor] = []  # keys of the samples since the last update

    def begin(self, encoder: VolumeEncoder) -> None:
        self.encoder_copy.follow(encoder)
        self.head_copy.follow(self.head)

    def loss(
        self, encoder: VolumeEncoder, x: Float[Tensor, "b c d h w"], keys: Sequence[int]
    ) -> Float[Tensor, "b"]:
        one, two = (
            torch.stack(
                [
                    self.views.view(v, self.views.start(v, key, i), key, i)
                    for v, key in zip(x, keys, strict=True)
                ]
            )
            for i in range(2)
        )
        q = unit(self.head(encoder(one)))
        k = unit(self.head_copy.called(self.head, self.encoder_copy.called(encoder, two)))
        if self.training:
            self.fresh.append(k)
        positive = (q * k).sum(1, keepdim=True)
        logits = torch.cat([positive, q @ self.queue.T.to(q)], dim=1) / self.temperature
        truth = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return F.cross_entropy(logits, truth, reduction="none")

    @torch.no_grad()
    def stepped(self, encoder: VolumeEncoder, share: float, gather: Gather) -> None:
        """The copies follow, and the queue goes on."""
        self.encoder_copy.update(encoder, self.momentum)
        self.head_copy.update(self.head, self.momentum)
        new = gather(torch.cat(self.fresh)).to(self.queue)
        self.fresh.clear()
        self.queue.copy_(torch.cat([new.flip(0), self.queue])[: len(self.queue)])
