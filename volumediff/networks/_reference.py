r"""Embedding of a whole volume through a bottleneck: the network is conditioned on the
subject at large, and on too little of it to copy a lesion,

.. math:: e = \mathrm{Embedding}\big(t, y, [c, f(P z)]\big),

with P the mean over the cells of a coarse grid and f a small convolutional encoder, whose code
joins the scalars.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.networks._embedding import Embedding

__all__ = ["ReferencedEmbedding"]

GRID = 16  # cells along an axis, whatever the volume: the bottleneck that keeps lesions out
WIDTHS = (16, 32, 64)
CODE = 128  # length of cDDPM's vector


class ReferencedEmbedding(nn.Module):
    """The embedding of time, class, scalars and the code of a reference state.

    Arguments:
        frequencies, classes, scalars, width: see `Embedding`
        channels: of the reference state

    References:
        Behrendt et al. (2023), Guided Reconstruction with Conditioned Diffusion Models for
        Unsupervised Anomaly Detection in Brain MRIs (cDDPM), arXiv:2312.04215; its encoder is a
        ResNet that was trained on masked volumes first
    """

    def __init__(
        self,
        frequencies: int,
        *,
        channels: int,
        classes: int = 0,
        scalars: int = 0,
        width: int | None = None,
    ) -> None:
        super().__init__()
        self.inner = Embedding(frequencies, classes=classes, scalars=scalars + CODE, width=width)
        self.width, self.classes, self.scalars = self.inner.width, classes, scalars
        self.channels = channels
        pairs = zip((channels, *WIDTHS[:-1]), WIDTHS, strict=True)
        self.encoder = nn.ModuleList(nn.Conv3d(i, o, 3, stride=2, padding=1) for i, o in pairs)
        self.code = nn.Linear(WIDTHS[-1] * 8, CODE)

    def forward(self, t: Float[Tensor, "b"], condition: Condition) -> Float[Tensor, "b n"]:
        reference = condition.reference
        got = 0 if reference is None else reference.shape[1]
        if got != self.channels:
            raise ValueError(
                f"the network takes a reference of {self.channels} channels, got {got}: set "
                "Condition.reference to the state of the volume"
            )
        h = F.adaptive_avg_pool3d(reference.to(self.code.weight.dtype), GRID)
        for layer in self.encoder:
            h = F.silu(layer(h))
        code = self.code(h.flatten(1)).to(t.dtype)
        scalars = condition.scalars
        told = code if scalars is None else torch.cat([scalars.to(t.dtype), code], dim=1)
        return self.inner(t, condition.replace(scalars=told))
