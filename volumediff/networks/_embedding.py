r"""Embedding of time, class and scalars into one vector per sample.

.. math:: e = a\big(W_2\, a(W_1 \gamma(t)) + E_y + \mathrm{MLP}(c)\big), \qquad
          \gamma(t) = [\cos 1000\,t\,\omega_i,\ \sin 1000\,t\,\omega_i], \quad
          \omega_i = 10^{-4 i / n}

The factor 1000 puts t in [0, 1] on the scale of the discrete step counts of the literature.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.networks._layers import Linear

__all__ = ["Embedding", "fourier"]


def fourier(t: Float[Tensor, "b"], width: int) -> Float[Tensor, "b n"]:
    """Cosines and sines of 1000 t at width // 2 frequencies from 1 down to 1e-4.

    References:
        Vaswani et al. (2017), arXiv:1706.03762, section 3.5
    """
    half = width // 2
    index = torch.arange(half, device=t.device, dtype=t.dtype)
    angle = 1000 * t[:, None] * torch.exp(-math.log(10_000) / half * index)
    return torch.cat((angle.cos(), angle.sin()), dim=1)


class Embedding(nn.Module):
    """Maps (t, class, scalars) to the vector e that conditions the residual blocks.

    Arguments:
        frequencies: even number of Fourier features of t
        classes: number of classes; the table has one entry more, the null class, index `classes`
        scalars: number of standardised scalars
        width: length of e; None for four times the features
    """

    def __init__(
        self, frequencies: int, *, classes: int = 0, scalars: int = 0, width: int | None = None
    ) -> None:
        super().__init__()
        self.frequencies = 2 * max(1, frequencies // 2)
        self.width = width or 4 * self.frequencies
        self.classes = classes
        self.scalars = scalars
        self.time = nn.ModuleList(
            [Linear(self.frequencies, self.width), Linear(self.width, self.width)]
        )
        self.label = nn.Embedding(classes + 1, self.width) if classes else None
        self.scalar = (
            nn.ModuleList([Linear(scalars, self.width), Linear(self.width, self.width)])
            if scalars
            else None
        )

    def forward(self, t: Float[Tensor, "b"], condition: Condition) -> Float[Tensor, "b n"]:
        e = _mlp(self.time, fourier(t, self.frequencies))
        if self.label is not None:
            label = condition.label
            if label is None:
                label = torch.full(t.shape, self.classes, device=t.device, dtype=torch.int64)
            e = e + self.label.weight.to(e.dtype)[label]
        elif condition.label is not None:
            raise ValueError(
                "the condition has a label, but the network was built with classes=0: "
                "leave the label out or train with classes"
            )
        if self.scalar is not None:
            given = condition.scalars
            if given is None or given.shape[1] != self.scalars:
                count = "none" if given is None else given.shape[1]
                raise ValueError(
                    f"the network takes {self.scalars} scalars per sample, got {count}: "
                    "set Condition.scalars"
                )
            e = e + _mlp(self.scalar, given.to(e.dtype))
        elif condition.scalars is not None:
            raise ValueError(
                "the condition has scalars, but the network was built with scalars=0: "
                "leave them out or train with scalars"
            )
        return F.silu(e)


def _mlp(layers: nn.ModuleList, x: Float[Tensor, "b i"]) -> Float[Tensor, "b o"]:
    return layers[1](F.silu(layers[0](x)))
