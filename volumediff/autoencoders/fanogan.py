r"""f-AnoGAN: a Wasserstein GAN of healthy volumes, and an encoder into it,

.. math::
    L_C &= \langle C(G(z)) \rangle - \langle C(x) \rangle
           + \lambda\, (|\nabla_{\tilde x} C(\tilde x)| - 1)^2, \qquad
    L_G = -\langle C(G(z)) \rangle, \\
    L_E &= \langle (x - G(E(x)))^2 \rangle + \kappa\, \langle (f(x) - f(G(E(x))))^2 \rangle,

z ~ N(0, 1), x̃ between x and G(z), f the features of the critic C (the loss called izi_f). The
encoder has no influence on the other two.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff import tiling
from volumediff.autoencoders._base import (
    Generators,
    Reconstructor,
    check_player,
    frozen,
    sources,
)
from volumediff.autoencoders._codec import NormName
from volumediff.autoencoders._dense import dense
from volumediff.autoencoders._gaussian import normal
from volumediff.networks._layers import Conv
from volumediff.networks._precision import wide
from volumediff.transfer import sent

__all__ = ["Critic", "FAnoGAN", "gradient_penalty"]

SLOPE = 0.2  # of the leaky ReLU, as in pix2pix and most critics since


class Critic(nn.Module):
    """Strided convolutions without normalization: a penalty on the gradient of each sample allows
    none over the batch, and the package's own has no second derivative.

    Arguments:
        channels: channels of the volume
        widths: channels of the layers; each halves the grid
    """

    def __init__(self, channels: int, *, widths: tuple[int, ...]) -> None:
        super().__init__()
        sizes = (channels, *widths)
        self.convs = nn.ModuleList(Conv(c, k, stride=(2, 2, 2)) for c, k in pairwise(sizes))
        self.head = Conv(widths[-1], 1)

    def features(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b f d2 h2 w2"]:
        """What the last layer but one makes of volumes."""
        for conv in self.convs:
            x = F.leaky_relu(conv(x), SLOPE)
        return x

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b"]:
        """One number per volume, the mean over places."""
        return wide(self.head(self.features(x))).flatten(1).mean(1)


class FAnoGAN(Reconstructor):
    """Encoder, generator and critic, which take turns step by step.

    The published encoder is trained after the GAN. Here all three are, in one run: the GAN is the
    same, and the encoder follows it.

    Arguments:
        channels: channels c of the volumes
        shape: sizes of the volumes
        latent_channels: length k of the latent vector
        widths: channels per level, finest first, each level half the size of the one before; of
            the critic, too
        blocks: residual blocks per level
        squeeze: channels of the coarsest level before it becomes a vector
        norm: normalization of encoder and generator, group or voxel
        penalty: lambda of the gradient
        features: kappa of the critic's features in the encoder's loss

    References:
        Schlegl et al. (2019), f-AnoGAN, Medical Image Analysis 54: kappa = 1, k = 128, 5 steps of
        the critic for one of the generator (here 1). Gulrajani et al. (2017), Improved Training
        of Wasserstein GANs, arXiv:1704.00028: lambda = 10
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
        penalty: float = 10.0,
        features: float = 1.0,
    ) -> None:
        super().__init__()
        codec = dense(
            channels,
            latent_channels,
            latent_channels=latent_channels,
            shape=shape,
            widths=widths,
            blocks=blocks,
            squeeze=squeeze,
            norm=norm,
        )
        self.encoder, self.generator = codec.encoder, codec.decoder
        self.critic = Critic(channels, widths=widths)
        self.channels, self.stride, self.latent_channels = channels, codec.stride, latent_channels
        self.penalty, self.features = penalty, features

    @property
    def players(self) -> dict[str, nn.Module]:
        """The encoder, whose loss validates, then critic and generator."""
        return {"encoder": self.encoder, "critic": self.critic, "generator": self.generator}

    @property
    def passes(self) -> tuple[nn.Module, ...]:
        """The convolutions of encoder and generator."""
        return self.encoder[0], self.generator[-1]

    def reconstruct(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """G(E(x))."""
        return tiling.crop(self.generator(self._latent(x)), x.shape[2:])

    def loss(
        self, player: str, x: Float[Tensor, "b c d h w"], *, generator: Generators
    ) -> dict[str, Tensor]:
        """L_E, L_C or L_G."""
        check_player(self, player)
        if player == "encoder":
            return self._encoder_loss(x)
        shape = tiling.padded_shape(x.shape[2:], self.stride)
        d, h, w = (n // s for n, s in zip(shape, self.stride, strict=True))
        like = x.new_empty((len(x), self.latent_channels, d, h, w))
        z = normal(like, generator)
        if player == "generator":
            fake = tiling.crop(self.generator(z), x.shape[2:])
            return {"loss": -frozen(self.critic)(fake).mean()}
        with torch.no_grad():
            fake = tiling.crop(self.generator(z), x.shape[2:])
        gap = self.critic(fake).mean() - self.critic(x).mean()
        steep = gradient_penalty(self.critic, x, fake, generator).mean()
        parts = {"gap": gap.detach(), "steepness": steep.detach()}
        return {"loss": gap + self.penalty * steep, **parts}

    def _encoder_loss(self, x: Tensor) -> dict[str, Tensor]:
        fake = tiling.crop(frozen(self.generator)(self._latent(x)), x.shape[2:])
        error = wide(fake - x).square().mean()
        loss, parts = error, {"error": error.detach()}
        # The critic changes: no measure to compare checkpoints by.
        if self.training:
            seen = frozen(_Features(self.critic))
            difference = wide(seen(fake) - seen(x)).square().mean()
            loss, parts["features"] = loss + self.features * difference, difference.detach()
        return {"loss": loss, **parts}

    def _latent(self, x: Tensor) -> Tensor:
        return self.encoder(tiling.pad(x, tiling.padded_shape(x.shape[2:], self.stride)))


class _Features(nn.Module):
    """The features of a critic as a module."""

    def __init__(self, critic: Critic) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, x: Tensor) -> Tensor:
        return self.critic.features(x)


def gradient_penalty(
    critic: nn.Module,
    real: Float[Tensor, "b c d h w"],
    fake: Float[Tensor, "b c d h w"],
    generator: Generators,
) -> Float[Tensor, "b"]:
    """(|∇ C(x̃)| - 1)² of each sample, at a random place between real and fake volumes."""
    each = sources(generator, len(real))
    u = torch.stack([torch.rand((), generator=s, device=s.device) for s in each])
    u = sent(u, real.device, dtype=real.dtype).view(-1, 1, 1, 1, 1)
    with torch.enable_grad():
        between = (u * real + (1 - u) * fake).detach().requires_grad_()
        total = critic(between).sum()
        (slope,) = torch.autograd.grad(total, between, create_graph=True)
        return (wide(slope).flatten(1).norm(dim=1) - 1).square()
