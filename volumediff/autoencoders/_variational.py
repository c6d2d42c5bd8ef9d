r"""Variational autoencoders with one Gaussian latent vector per volume. The bound that all of them
are about, per voxel and latent element, is

.. math:: \mathcal L(x) = \tfrac12 \langle (x - D(z))^2 \rangle_{voxels}
          + \beta\, \langle \mathrm{KL}(q(z_j | x) \| N(0, 1)) \rangle_{j}, \qquad z \sim q(z | x),

which is :math:`\sigma^2 / N` times the negative evidence lower bound of a Gaussian likelihood with
the variance :math:`\sigma^2 = \beta N / k` for N voxels and k latent elements, up to a constant.
"""

from abc import ABC
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from volumediff import tiling
from volumediff.autoencoders._base import Generators, Reconstructor
from volumediff.autoencoders._codec import Codec
from volumediff.autoencoders._gaussian import divergence, draw, posterior
from volumediff.networks._precision import wide
from volumediff.shapes import Shape

__all__ = ["Bound", "Variational", "half_square"]


@dataclass(frozen=True, eq=False)
class Bound:
    """The terms of the bound, sample by sample.

    Arguments:
        distortion: half the mean squared error
        divergence: mean over latent elements, without its weight
        x_hat: the reconstruction
    """

    distortion: Float[Tensor, "b"]
    divergence: Float[Tensor, "b"]
    x_hat: Float[Tensor, "b c d h w"]


def half_square(
    x: Float[Tensor, "b c d h w"], y: Float[Tensor, "b c d h w"]
) -> Float[Tensor, "b"]:
    """Half the mean squared difference of each sample."""
    return 0.5 * wide(x - y).square().flatten(1).mean(1)


class Variational(Reconstructor, ABC):
    """Encoder to mean and log-variance of q(z | x), and decoder.

    Arguments:
        channels: channels c of the volumes
        codec: encoder, with twice the channels of the latent, and decoder
        weight: beta, factor of the divergence
    """

    def __init__(self, channels: int, *, codec: Codec, weight: float) -> None:
        super().__init__()
        self.codec = nn.ModuleDict({"encoder": codec.encoder, "decoder": codec.decoder})
        self.channels, self.stride, self.weight = channels, codec.stride, weight

    @property
    def passes(self) -> tuple[nn.Module, ...]:
        """The convolutions of encoder and decoder."""
        return self.codec["encoder"][0], self.codec["decoder"][-1]

    def posterior(
        self, x: Float[Tensor, "b c d h w"]
    ) -> tuple[Float[Tensor, "b k d2 h2 w2"], Float[Tensor, "b k d2 h2 w2"]]:
        """Mean and log-variance of q(z | x)."""
        shape = tiling.padded_shape(x.shape[2:], self.stride)
        return posterior(self.codec["encoder"](tiling.pad(x, shape)))

    def decode(self, z: Float[Tensor, "b k d2 h2 w2"], shape: Shape) -> Float[Tensor, "b c d h w"]:
        """The volume of a latent, of the given size."""
        return tiling.crop(self.codec["decoder"](z), shape)

    def reconstruct(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """D of the mean of q."""
        return self.bound(x).x_hat

    def bound(
        self, x: Float[Tensor, "b c d h w"], *, generator: Generators | None = None
    ) -> Bound:
        """The terms of the bound, differentiable in x.

        Arguments:
            x: volumes
            generator: of z; None takes the mean of q
        """
        d, h, w = x.shape[2:]
        mu, log_variance = self.posterior(x)
        z = mu if generator is None else draw(mu, log_variance, generator)
        x_hat = self.decode(z.to(x.dtype), (d, h, w))
        return Bound(half_square(x_hat, x), divergence(mu, log_variance), x_hat)

    def total(self, bound: Bound) -> Float[Tensor, "b"]:
        """Distortion and weighted divergence of each sample."""
        return bound.distortion + self.weight * bound.divergence
