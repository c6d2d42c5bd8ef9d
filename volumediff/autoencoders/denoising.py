r"""Denoising autoencoder: a U-Net that takes coarse noise off the foreground,

.. math:: L = \langle m\, (D(x + \sigma\, m\, n) - x)^2 \rangle, \qquad m = [x > \text{air}],

n white on a coarse grid and interpolated. What it sees at test time is the volume itself: lesions
are taken for noise.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.autoencoders._base import Generators, Reconstructor, check_player, sources
from volumediff.networks._hourglass import Hourglass
from volumediff.noise import CoarseNoise
from volumediff.transfer import sent

__all__ = ["Denoising"]

# The published mask is an intensity above 0.01 of [0, 1]; air is -1 here.
AIR = -0.98


class Denoising(Reconstructor):
    """U-Net with skips: no bottleneck, the noise alone is what keeps it from the identity.

    Arguments:
        channels: channels c of the volumes
        widths: channels per level, finest first
        blocks: residual blocks per level, in the encoder and again in the decoder
        groups: channel groups of the group normalization
        sigma: deviation of the noise; the published 0.2 is of intensities in [0, 1], ours span 2
        cell: voxels between the nodes of the noise; 16 nodes along 128 voxels as published

    References:
        Kascenas et al. (2022), Denoising Autoencoders for Unsupervised Anomaly Detection in Brain
        MRI, MIDL (PMLR 172)
    """

    def __init__(
        self,
        channels: int,
        *,
        widths: tuple[int, ...] = (16, 32, 64),
        blocks: int = 1,
        groups: int = 8,
        sigma: float = 0.4,
        cell: int = 8,
    ) -> None:
        super().__init__()
        if sigma < 0:
            raise ValueError(f"sigma: expected at least 0, got {sigma}.")
        self.hourglass = Hourglass(
            channels,
            channels,
            widths=widths,
            blocks=blocks,
            attention_levels=(),
            embedding=0,
            mode="film",
            norm="group",
            groups=groups,
            kernel=(3, 3, 3),
            factor=(2, 2, 2),
        )
        self.channels, self.stride = channels, self.hourglass.stride
        self.sigma, self.noise = sigma, CoarseNoise(cell)

    @property
    def players(self) -> dict[str, nn.Module]:
        """The network."""
        return {"network": self.hourglass}

    @property
    def passes(self) -> tuple[nn.Module, ...]:
        """The network."""
        return (self.hourglass,)

    def reconstruct(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """The network on the volume itself."""
        return self.hourglass(x, x.new_empty((len(x), 0)))

    def loss(
        self, player: str, x: Float[Tensor, "b c d h w"], *, generator: Generators
    ) -> dict[str, Tensor]:
        """The squared error in the foreground of what was noisy there."""
        check_player(self, player)
        m = (x > AIR).any(dim=1, keepdim=True)
        y = self.reconstruct(x + self.sigma * m * self._noise(x, generator))
        return {"loss": ((y - x).float().square() * m).mean()}

    def _noise(self, x: Tensor, generator: Generators) -> Tensor:
        """Coarse noise whose nodes lie elsewhere in every volume."""
        c, d, h, w = x.shape[1:]
        fields = []
        for source in sources(generator, len(x)):
            key, *rolls = torch.randint(2**62, (4,), generator=source, device=source.device)
            field = self.noise((c, d, h, w), int(key))
            shifts = [int(r) % self.noise.cell for r in rolls]
            fields.append(field.roll(shifts, dims=(1, 2, 3)))
        return sent(torch.stack(fields), x.device, dtype=x.dtype)
