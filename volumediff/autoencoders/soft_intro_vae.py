r"""Soft-introspective VAE: the encoder is the discriminator. With the bound L(x), its distortion
r(x) and divergence k(x), z ~ N(0, 1), and for the two volumes of the decoder f ∈ {D(z), D(E(x))},

.. math::
    L_E &= r(x) + \beta\, k(x)
        + \tfrac14 \textstyle\sum_f \exp(-2\,(r(f) + \beta_{neg}\, k(f))), \\
    L_D &= r(x) + \tfrac12 \textstyle\sum_f (\beta\, k(f) + \gamma\, r(f)) + \lambda R(x):

the encoder gives what the decoder makes up a low evidence, the decoder a high one. R is the
difference of the encoder's features of x and of its reconstruction, level by level,

.. math:: R(x) = \textstyle\sum_l \tfrac12 \langle (f_l(x) - f_l(\hat x))^2 \rangle
          + 1 - \cos(f_l(x), f_l(\hat x)),

with which the model is the reversed autoencoder (RA).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff import tiling
from volumediff.autoencoders._base import Generators, check_player, frozen
from volumediff.autoencoders._codec import NormName
from volumediff.autoencoders._dense import dense
from volumediff.autoencoders._gaussian import divergence, draw, normal, posterior
from volumediff.autoencoders._variational import Variational, half_square
from volumediff.memory.memory_policy import runs_in_slabs
from volumediff.networks._block import Recomputable

__all__ = ["SoftIntroVAE"]

Map = Callable[[Tensor], Tensor]


class SoftIntroVAE(Variational):
    """VAE whose encoder and decoder are trained against each other.

    Arguments:
        channels: channels c of the volumes
        shape: sizes of the volumes
        latent_channels: length k of the latent vector
        widths: channels per level, finest first, each level half the size of the one before
        blocks: residual blocks per level
        squeeze: channels of the coarsest level before it becomes a vector
        norm: normalization, group or voxel
        weight: beta, of the divergence as a mean over latent elements; the published 1 divides a
            sum over 128 latents by 128² pixels, 0.008 of their mean
        negative: beta_neg, of made-up volumes; 256 times beta as published
        again: gamma, of the distortion of made-up volumes
        reversed: lambda of the features; 0 is the soft-introspective VAE as published

    References:
        Daniel and Tamar (2021), Soft-IntroVAE, arXiv:2012.13253, eq. 7; the published code's sums
        over two made-up volumes. Bercea et al. (2023), Generalizing Unsupervised Anomaly
        Detection (RA), MIDL; their features are compared with these two terms
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
        negative: float = 2.56,
        again: float = 1e-8,
        reversed: float = 0.0,
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
        self.negative, self.again, self.reversed = negative, again, reversed

    @property
    def players(self) -> dict[str, nn.Module]:
        """The encoder, then the decoder."""
        return {"encoder": self.codec["encoder"], "decoder": self.codec["decoder"]}

    def loss(
        self, player: str, x: Float[Tensor, "b c d h w"], *, generator: Generators
    ) -> dict[str, Tensor]:
        """L_E or L_D; in evaluation the bound alone, as what is made up is no fixed measure."""
        check_player(self, player)
        encode, decode = self.codec["encoder"], self.codec["decoder"]
        padded = tiling.pad(x, tiling.padded_shape(x.shape[2:], self.stride))
        if not self.training:
            return {"loss": self.total(self.bound(x, generator=generator)).mean()}
        if player == "encoder":
            return self._encoder_loss(padded, encode, frozen(decode), generator)
        return self._decoder_loss(padded, frozen(encode), decode, generator)

    def _encoder_loss(
        self, x: Tensor, encode: Map, decode: Map, generator: Generators
    ) -> dict[str, Tensor]:
        mu, log_variance = posterior(encode(x))
        x_hat = decode(draw(mu, log_variance, generator).to(x.dtype))
        kl = divergence(mu, log_variance)
        made = decode(normal(mu, generator).to(x.dtype))
        total = half_square(x_hat, x) + self.weight * kl
        for f in (made.detach(), x_hat.detach()):
            a, b = posterior(encode(f))
            again = decode(draw(a, b, generator).to(x.dtype))
            evidence = half_square(again, f) + self.negative * divergence(a, b)
            total = total + 0.25 * torch.exp(-2 * evidence)
        return {"loss": total.mean(), "kl": kl.mean().detach()}

    def _decoder_loss(
        self, x: Tensor, encode: Map, decode: Map, generator: Generators
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            mu, log_variance = posterior(encode(x))
        x_hat = decode(draw(mu, log_variance, generator).to(x.dtype))
        made = decode(normal(mu, generator).to(x.dtype))
        distortion = half_square(x_hat, x)
        total = distortion
        for f in (made, x_hat):
            a, b = posterior(encode(f))
            again = decode(draw(a, b, generator).detach().to(x.dtype))
            total = total + 0.5 * self.weight * divergence(a, b)
            total = total + 0.5 * self.again * half_square(again, f.detach())
        if self.reversed:
            total = total + self.reversed * self._difference(x, x_hat, encode)
        return {"loss": total.mean(), "distortion": distortion.mean().detach()}

    def _difference(self, x: Tensor, x_hat: Tensor, encode: Map) -> Float[Tensor, "b"]:
        """R, with the residual blocks of the encoder as levels."""
        with torch.no_grad():
            ours = self._stages(x, encode)
        total = torch.zeros(len(x), device=x.device)
        for f, g in zip(ours, self._stages(x_hat, encode), strict=True):
            near = F.cosine_similarity(f.float().flatten(1), g.float().flatten(1), dim=1)
            total = total + half_square(f, g) + 1 - near
        return total

    def _stages(self, x: Tensor, encode: Map) -> list[Tensor]:
        if runs_in_slabs(self.passes[0], "forward"):  # which never show a whole block
            raise ValueError(
                "reversed: expected an encoder that runs in one piece, got one in slabs; use "
                "memory.slab=null memory.offload=false processes.domain=1, or reversed: 0."
            )
        seen: list[Tensor] = []
        parts = [m for m in self.codec["encoder"].modules() if isinstance(m, Recomputable)]
        handles = [p.register_forward_hook(lambda _, __, y: seen.append(y)) for p in parts]
        try:
            encode(x)
        finally:
            for handle in handles:
                handle.remove()
        return seen
