r"""Self-supervised pre-training of the network of a diffusion model or a segmentation,

.. math:: f(x) = \operatorname{mean}_{voxels} E(A(x), t = 0),

with E the network's encoder, up to its deepest features, and A the state space. What is learnt on
top of it is the pretext's. The decoder is trained by pretexts that need it alone.
"""

from collections.abc import Callable
from itertools import chain
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.batch import Batch
from volumediff.networks._base import Network
from volumediff.pretexts._base import Pretext, VolumeEncoder
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace

__all__ = ["NetworkEncoder", "Pretraining", "beside_encoder"]

BACKGROUND = -1.0  # of volumes


class NetworkEncoder(VolumeEncoder):
    """A network without time and conditions, as pretexts see it.

    Arguments:
        space: volumes <-> states
        network: state -> state
        dtype: in which the network computes
    """

    def __init__(self, space: StateSpace, network: Network, *, dtype: torch.dtype) -> None:
        super().__init__()
        self.space, self.network, self.dtype = space, network, dtype

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b n"]:
        z = self.space.encode(x)
        features = self.network.features(z.to(self.dtype), z.new_zeros(len(z)))
        return features.to(torch.promote_types(features.dtype, z.dtype)).flatten(2).mean(2)

    def restored(
        self, x: Float[Tensor, "b c d h w"], hidden: Float[Tensor, "b 1 d h w"]
    ) -> Float[Tensor, "b"]:
        z, m = self.space.encode(x), self.space.mask(hidden)
        seen = self.space.encode(torch.where(hidden > 0, BACKGROUND, x))
        out = self.network(seen.to(self.dtype), z.new_zeros(len(z))).to(z.dtype)
        errors = (m * (out - z).square()).flatten(1).mean(1)
        return errors / m.flatten(1).mean(1).clamp(min=torch.finfo(z.dtype).tiny)


class Pretraining(nn.Module):
    """An encoder and what it learns from.

    Arguments:
        encoder: the network with its space
        pretext: the loss of volumes
    """

    diffuses: ClassVar[bool] = False

    def __init__(self, encoder: NetworkEncoder, pretext: Pretext) -> None:
        super().__init__()
        self.encoder, self.pretext = encoder, pretext
        unused = [] if pretext.decodes else self.untrained
        for part in unused:
            part.requires_grad_(False)
        pretext.begin(encoder)

    @property
    def untrained(self) -> list[nn.Module]:
        """Parts of the network that do not lead to its deepest features."""
        return [] if self.pretext.decodes else beside_encoder(self.encoder.network)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        buffers = self.encoder.space.buffers()
        return next(chain(self.encoder.network.parameters(), buffers), torch.empty(0)).device

    @property
    def counted(self) -> nn.Module:
        """The module whose evaluations are what a volume costs."""
        return self.encoder.network

    def loss(self, batch: Batch) -> Float[Tensor, "b"]:
        """One loss per sample; it follows from the sample and its key."""
        return self.pretext.loss(self.encoder, batch.x, batch.keys)

    def stepped(self, share: float, gather: Callable[[Tensor], Tensor]) -> None:
        """Follows an update of the weights; see `Pretext.stepped`."""
        self.pretext.stepped(self.encoder, share, gather)

    def grid(self, shape: Shape) -> Shape:
        """Grid of the states of a volume."""
        return self.encoder.space.grid(shape)


def beside_encoder(network: Network) -> list[nn.Module]:
    """The parts of a network that do not lead to its deepest features."""
    used = {id(m) for part in network.anatomy.descent for m in part.modules()}
    parts = [m for m in network.modules() if not any(True for _ in m.children())]
    return [m for m in parts if id(m) not in used]
