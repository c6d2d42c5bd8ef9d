r"""Autoencoders: an encoder E to a small latent grid and a decoder D back,

.. math:: L = |D(E(x)) - x|_1 + \text{penalty of the latent} + w_{adv} L_G(D(E(x))),

means over voxels, and optionally a discriminator that is trained against them. What a file of
this folder adds is the bottleneck between the two: what a latent is and how it is penalised.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff import tiling
from volumediff.autoencoders._codec import NormName, decoder, encoder
from volumediff.autoencoders._patchgan import PatchGAN, discriminator_loss, generator_loss
from volumediff.shapes import Shape

__all__ = ["Autoencoder", "Generators"]

Generators = torch.Generator | Sequence[torch.Generator]


class Autoencoder(nn.Module, ABC):
    """Encoder, bottleneck, decoder and an optional discriminator.

    Subclasses pass these arguments on.

    Arguments:
        channels: channels c of the volumes
        features: channels that the encoder makes
        latent_channels: channels k of the latent
        widths: channels per level, finest first
        strides: down-sampling between levels, per axis d, h, w, each 1 or 2
        blocks: residual blocks per level
        norm: group, or voxel for networks that must not depend on the size of the crop
        planar: slices along d are coded apart: kernels 1 x 3 x 3 and statistics per slice
        adversarial: weight of the generator's loss; 0 leaves the discriminator out
    """

    def __init__(
        self,
        channels: int,
        features: int,
        *,
        latent_channels: int,
        widths: tuple[int, ...],
        strides: tuple[Shape, ...],
        blocks: int,
        norm: NormName,
        planar: bool,
        adversarial: float,
    ) -> None:
        super().__init__()
        if len(strides) != len(widths) - 1 or {n for s in strides for n in s} - {1, 2}:
            raise ValueError(
                f"strides must be one triple of 1 or 2 between each two of the {len(widths)} "
                f"widths, got {strides}."
            )
        if planar and any(s[0] != 1 for s in strides):
            raise ValueError(f"a planar autoencoder has strides (1, ., .), got {strides}.")
        common = {"widths": widths, "strides": strides, "blocks": blocks}
        common |= {"norm": norm, "planar": planar}
        self.codec = nn.ModuleDict(
            {
                "encoder": encoder(channels, features, **common),
                "decoder": decoder(latent_channels, channels, **common),
            }
        )
        self.discriminator = PatchGAN(channels, planar=planar) if adversarial > 0 else None
        self.adversarial = adversarial
        self.channels, self.latent_channels, self.planar = channels, latent_channels, planar
        d, h, w = (math.prod(s[axis] for s in strides) for axis in range(3))
        self.stride: Shape = (d, h, w)

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
