r"""Context-encoding variational autoencoder: it also fills in boxes that were cut out,

.. math:: L = (1 - \gamma)\, \mathcal L(x)
          + \gamma\, \tfrac12 \langle (x - D(\mu(\tilde x)))^2 \rangle,

with the bound of a VAE and x̃ the volume with boxes void. The second term has no noise and no
divergence: it trains the mean of the posterior to be that of a whole volume.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.autoencoders._base import Generators, check_player, sources
from volumediff.autoencoders._codec import NormName
from volumediff.autoencoders._dense import dense
from volumediff.autoencoders._variational import Variational, half_square

__all__ = ["ContextVAE", "voided"]

VOID = -1.0  # air, the background of prepared volumes


class ContextVAE(Variational):
    """A VAE that is a context encoder, too.

    Arguments:
        channels: channels c of the volumes
        shape: sizes of the volumes
        latent_channels: length k of the latent vector
        widths: channels per level, finest first, each level half the size of the one before
        blocks: residual blocks per level
        squeeze: channels of the coarsest level before it becomes a vector
        norm: normalization, group or voxel
        weight: beta, of the divergence as a mean over latent elements
        context: gamma, the share of the second term
        boxes: most boxes that are cut out; their number is uniform from 1
        side: largest side of a box, as a share of the volume's

    References:
        Zimmerer et al. (2018), Context-encoding Variational Autoencoder for Unsupervised Anomaly
        Detection, arXiv:1812.05941; defaults of the published code
    """

    def __init__(
        self,
        channels: int,
        *,
        shape: tuple[int, int, int],
        latent_channels: int = 128,
        widths: tuple[int, ...] = (16, 32, 64, 64),
        blocks: int = 1,
        squeeze: int = 16,
        norm: NormName = "group",
        weight: float = 0.01,
        context: float = 0.5,
        boxes: int = 3,
        side: float = 0.5,
    ) -> None:
        if not 0 <= context <= 1 or boxes < 1 or not 0 < side <= 1:
            raise ValueError(
                "expected context in [0, 1], at least one box and side in (0, 1], got "
                f"{context}, {boxes} and {side}."
            )
        codec = dense(
            channels,
            2 * latent_channels,
            latent_channels=latent_channels,
            shape=shape,
            widths=widths,
            blocks=blocks,
            squeeze=squeeze,
            norm=norm,
        )
        super().__init__(channels, codec=codec, weight=weight)
        self.context, self.boxes, self.side = context, boxes, side

    @property
    def players(self) -> dict[str, nn.Module]:
        """Encoder and decoder together."""
        return {"autoencoder": self.codec}

    def loss(
        self, player: str, x: Float[Tensor, "b c d h w"], *, generator: Generators
    ) -> dict[str, Tensor]:
        """The bound, and the error where boxes are void."""
        check_player(self, player)
        bound = self.bound(x, generator=generator)
        hidden = voided(x, generator, boxes=self.boxes, side=self.side)
        filled = half_square(self.reconstruct(hidden), x)
        total = (1 - self.context) * self.total(bound) + self.context * filled
        return {
            "loss": total.mean(),
            "distortion": bound.distortion.mean().detach(),
            "kl": bound.divergence.mean().detach(),
            "context": filled.mean().detach(),
        }


def voided(
    x: Float[Tensor, "b c d h w"], generator: Generators, *, boxes: int, side: float
) -> Float[Tensor, "b c d h w"]:
    """The volumes with 1 to `boxes` boxes void, of sides up to a share of the volume's."""
    result = x.clone()
    for volume, source in zip(result, sources(generator, len(x)), strict=True):
        number = 1 + int(torch.rand((), generator=source, device=source.device) * boxes)
        for _ in range(number):
            u = torch.rand((2, 3), generator=source, device=source.device).tolist()
            place = []
            for n, size, start in zip(volume.shape[1:], *u, strict=True):
                length = min(1 + int(size * int(side * n)), n)
                first = int(start * (n - length + 1))
                place.append(slice(first, first + length))
            volume[:, place[0], place[1], place[2]] = VOID
    return result
