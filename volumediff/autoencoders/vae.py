"""Variational autoencoder with one latent vector per volume: a lesion does not fit through it."""

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.autoencoders._base import Generators, check_player
from volumediff.autoencoders._codec import NormName
from volumediff.autoencoders._dense import dense
from volumediff.autoencoders._variational import Variational

__all__ = ["VAE"]


class VAE(Variational):
    r"""Loss :math:`\tfrac12\langle(x - D(z))^2\rangle + \beta\langle\mathrm{KL}\rangle`.

    Arguments:
        channels: channels c of the volumes
        shape: sizes of the volumes
        latent_channels: length k of the latent vector
        widths: channels per level, finest first, each level half the size of the one before
        blocks: residual blocks per level
        squeeze: channels of the coarsest level before it becomes a vector
        norm: normalization, group or voxel
        weight: beta, of the divergence as a mean over latent elements

    References:
        Kingma and Welling (2014), arXiv:1312.6114; Zimmerer et al. (2018), arXiv:1812.05941, whose
        published code has beta = 0.01 with means as here, and an absolute error in place of ours,
        whose gradient is a sign
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
    ) -> None:
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

    @property
    def players(self) -> dict[str, nn.Module]:
        """Encoder and decoder together."""
        return {"autoencoder": self.codec}

    def loss(
        self, player: str, x: Float[Tensor, "b c d h w"], *, generator: Generators
    ) -> dict[str, Tensor]:
        """The bound."""
        check_player(self, player)
        bound = self.bound(x, generator=generator)
        return {
            "loss": self.total(bound).mean(),
            "distortion": bound.distortion.mean().detach(),
            "kl": bound.divergence.mean().detach(),
        }
