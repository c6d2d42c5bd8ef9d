r"""Autoencoders: an encoder E to a small latent grid and a decoder D back,

.. math:: L = |D(E(x)) - x|_1 + \text{penalty of the latent} + w_{adv} L_G(D(E(x))),

means over voxels, and optionally a discriminator that is trained against them. What a file of
this folder adds is the bottleneck between the two: what a latent is and how it is penalised.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff import tiling
from volumediff.autoencoders._codec import Codec
from volumediff.autoencoders._patchgan import PatchGAN, discriminator_loss, generator_loss
from volumediff.shapes import Shape

__all__ = ["Autoencoder", "Generators"]

Generators = torch.Generator | Sequence[torch.Generator]


class Autoencoder(nn.Module, ABC):
    """Encoder, bottleneck, decoder and an optional discriminator.

    Arguments:
        channels: channels c of the volumes
        latent_channels: channels k of the latent
        codec: encoder and decoder
        adversarial: weight of the generator's loss; 0 leaves the discriminator out

    Attributes:
        binary: whether latents are bits, coded as -1 and 1
    """

    binary: ClassVar[bool] = False

    def __init__(
        self, channels: int, latent_channels: int, *, codec: Codec, adversarial: float
    ) -> None:
        super().__init__()
        self.codec = nn.ModuleDict({"encoder": codec.encoder, "decoder": codec.decoder})
        planar = codec.planar
        self.discriminator = PatchGAN(channels, planar=planar) if adversarial > 0 else None
        self.adversarial = adversarial
        self.channels, self.latent_channels, self.planar = channels, latent_channels, planar
        self.stride = codec.stride

    @abstractmethod
    def code(self, features: Float[Tensor, "b f d h w"]) -> Float[Tensor, "b k d h w"]:
        """The latent of the encoder's features, without randomness."""

    @abstractmethod
    def restore(self, latent: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b k d h w"]:
        """What the decoder reads, from a latent that a sampler may have made."""

    @abstractmethod
    def bottleneck(
        self, features: Float[Tensor, "b f d h w"], generator: Generators
    ) -> tuple[Float[Tensor, "b k d h w"], Float[Tensor, ""], dict[str, Tensor]]:
        """In training: what the decoder reads, the weighted penalty, and its parts for the log."""

    @property
    def players(self) -> dict[str, nn.Module]:
        """Modules that are trained in turn, each with its own optimizer and its own loss."""
        players: dict[str, nn.Module] = {"autoencoder": self.codec}
        if self.discriminator is not None:
            players["discriminator"] = self.discriminator
        return players

    def encode(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        """The latent; sizes that the stride does not divide are padded by the last plane."""
        return self.code(self._features(x))

    def decode(
        self, latent: Float[Tensor, "b k d2 h2 w2"], shape: Shape | None = None
    ) -> Float[Tensor, "b c d h w"]:
        """The volume of a latent, cropped to `shape` if given."""
        x = self.codec["decoder"](self.restore(latent))
        return x if shape is None else tiling.crop(x, shape)

    def loss(
        self, player: str, x: Float[Tensor, "b c d h w"], *, generator: Generators
    ) -> dict[str, Tensor]:
        """The loss of one player under `loss`, and its parts for the log.

        Arguments:
            player: a key of `players`
            x: volumes
            generator: one, or one per sample: then a sample's noise does not depend on its batch

        Raises:
            ValueError: no such player
        """
        if player not in self.players:
            raise ValueError(f"player must be one of {', '.join(self.players)}, got {player!r}.")
        if player == "discriminator":
            with torch.no_grad():
                fake, _, _ = self._reconstruct(x, generator)
            return {"loss": discriminator_loss(self.discriminator(x), self.discriminator(fake))}
        fake, penalty, parts = self._reconstruct(x, generator)
        parts["l1"] = (fake.float() - x.float()).abs().mean()
        total = parts["l1"] + penalty
        # The judgement changes with the discriminator: no measure to compare checkpoints by.
        if self.discriminator is not None and self.training:
            # gradients pass to x and not to the discriminator, whose optimizer has its own loss
            frozen = {n: p.detach() for n, p in self.discriminator.named_parameters()}
            judged = torch.func.functional_call(self.discriminator, frozen, (fake,))
            parts["adversarial"] = generator_loss(judged)
            total = total + self.adversarial * parts["adversarial"]
        return {"loss": total, **{name: part.detach() for name, part in parts.items()}}

    def _reconstruct(
        self, x: Tensor, generator: Generators
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        z, penalty, parts = self.bottleneck(self._features(x), generator)
        return tiling.crop(self.codec["decoder"](z), x.shape[2:]), penalty, parts

    def _features(self, x: Tensor) -> Tensor:
        shape = tiling.padded_shape(x.shape[2:], self.stride)
        return self.codec["encoder"](tiling.pad(x, shape))
