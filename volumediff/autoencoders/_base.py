r"""Reconstructors, x -> what a healthy x looks like, and autoencoders, which go by a latent grid:
an encoder E and a decoder D,

.. math:: L = |D(E(x)) - x|_1 + \text{penalty of the latent} + w_{adv} L_G(D(E(x))),

means over voxels, and optionally a discriminator that is trained against them. What an
autoencoder's file adds is the bottleneck: what a latent is and how it is penalised. The other
reconstructors bring losses of their own; they localize anomalies and hold no latent diffusion.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff import tiling
from volumediff.autoencoders._codec import Codec
from volumediff.autoencoders._patchgan import PatchGAN, discriminator_loss, generator_loss
from volumediff.autoencoders._readouts import IntensityReadout, Readout
from volumediff.networks._streamable import Streamable
from volumediff.shapes import Shape

__all__ = ["Autoencoder", "Generators", "Reconstructor", "check_player", "frozen", "sources"]

Generators = torch.Generator | Sequence[torch.Generator]
Total = Callable[[Tensor], Tensor]
"""The sum of a tensor over all processes."""


class Reconstructor(Streamable):
    """Anything that reconstructs volumes and is trained by losses of players that take turns.

    Attributes `channels` and `stride` are the channels of the volumes and the voxels of a cell:
    crops that start at multiples of the stride see the grid of the whole volume. `codes_labels`
    says whether masks of labels may stand for volumes.
    """

    diffuses: ClassVar[bool] = False
    codes_labels: ClassVar[bool] = False
    channels: int
    stride: Shape

    @property
    @abstractmethod
    def players(self) -> dict[str, nn.Module]:
        """Modules that are trained in turn, each with its own optimizer and its own loss; the loss
        of the first validates."""

    @property
    @abstractmethod
    def passes(self) -> tuple[nn.Module, ...]:
        """Modules that map volumes from end to end, which a memory policy may run in slabs; the
        first reads volumes, and its residual blocks are features to compare them by."""

    @property
    def counted(self) -> nn.Module:
        """The module whose evaluations are what a volume costs."""
        return self.passes[0]

    def stepped(self, total: Total) -> None:
        """Whatever follows an update of the weights.

        Arguments:
            total: all processes take part
        """

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        """The passes as they are called."""
        return tuple((part, "forward") for part in self.passes)

    @abstractmethod
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

    @abstractmethod
    def reconstruct(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """What the volume looks like to the model, without randomness."""


def check_player(model: Reconstructor, player: str) -> None:
    """Raises ValueError for a player that there is not."""
    if player not in model.players:
        raise ValueError(f"player must be one of {', '.join(model.players)}, got {player!r}.")


def sources(generator: Generators, number: int) -> Sequence[torch.Generator]:
    """A generator for every sample."""
    if isinstance(generator, torch.Generator):
        return [generator] * number
    if len(generator) != number:
        raise ValueError(f"expected {number} generators, one per sample, got {len(generator)}.")
    return generator


def frozen(module: nn.Module) -> Callable[..., Tensor]:
    """The module with constant weights: gradients pass to its arguments alone."""
    weights = {name: p.detach() for name, p in module.named_parameters()}
    return lambda *x: torch.func.functional_call(module, weights, x)


class Autoencoder(Reconstructor, ABC):
    """Encoder, bottleneck, decoder and an optional discriminator.

    Arguments:
        channels: channels c of the volumes
        latent_channels: channels k of the latent
        codec: encoder and decoder
        adversarial: weight of the generator's loss; 0 leaves the discriminator out

    Attributes:
        binary: whether latents are bits, coded as -1 and 1
        readout: what the decoder's channels mean; whoever builds it for masks says so
    """

    binary: ClassVar[bool] = False
    codes_labels: ClassVar[bool] = True

    def __init__(
        self, channels: int, latent_channels: int, *, codec: Codec, adversarial: float
    ) -> None:
        super().__init__()
        self.codec = nn.ModuleDict({"encoder": codec.encoder, "decoder": codec.decoder})
        planar = codec.planar
        self.discriminator = PatchGAN(channels, planar=planar) if adversarial > 0 else None
        self.adversarial = adversarial
        self.readout: Readout = IntensityReadout()
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
        """Encoder and decoder, then the discriminator."""
        players: dict[str, nn.Module] = {"autoencoder": self.codec}
        if self.discriminator is not None:
            players["discriminator"] = self.discriminator
        return players

    @property
    def passes(self) -> tuple[nn.Module, ...]:
        """Encoder and decoder."""
        return self.codec["encoder"], self.codec["decoder"]

    def reconstruct(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """D(E(x))."""
        d, h, w = x.shape[2:]
        return self.decode(self.encode(x), (d, h, w))

    def encode(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        """The latent; sizes that the stride does not divide are padded by the last plane."""
        return self.code(self._features(x))

    def decode(
        self, latent: Float[Tensor, "b k d2 h2 w2"], shape: Shape | None = None
    ) -> Float[Tensor, "b c d h w"]:
        """The volume of a latent, cropped to `shape` if given."""
        x = self.readout.read(self.codec["decoder"](self.restore(latent)))
        return x if shape is None else tiling.crop(x, shape)

    def loss(
        self, player: str, x: Float[Tensor, "b c d h w"], *, generator: Generators
    ) -> dict[str, Tensor]:
        """Reconstruction, penalty and judgement, or the discriminator's hinge loss."""
        check_player(self, player)
        if player == "discriminator":
            with torch.no_grad():
                raw, _, _ = self._reconstruct(x, generator)
                fake = self.readout.read(raw)
            return {"loss": discriminator_loss(self.discriminator(x), self.discriminator(fake))}
        raw, penalty, parts = self._reconstruct(x, generator)
        term = self.readout.term
        parts[term] = self.readout.loss(raw, x)
        total = parts[term] + penalty
        # The judgement changes with the discriminator: no measure to compare checkpoints by.
        if self.discriminator is not None and self.training:
            # gradients pass to x and not to the discriminator, whose optimizer has its own loss
            fake = self.readout.read(raw)
            parts["adversarial"] = generator_loss(frozen(self.discriminator)(fake))
            total = total + self.adversarial * parts["adversarial"]
        return {"loss": total, **{name: part.detach() for name, part in parts.items()}}

    def _reconstruct(
        self, x: Tensor, generator: Generators
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """The decoder's channels as they are."""
        z, penalty, parts = self.bottleneck(self._features(x), generator)
        return tiling.crop(self.codec["decoder"](z), x.shape[2:]), penalty, parts

    def _features(self, x: Tensor) -> Tensor:
        shape = tiling.padded_shape(x.shape[2:], self.stride)
        return self.codec["encoder"](tiling.pad(x, shape))
