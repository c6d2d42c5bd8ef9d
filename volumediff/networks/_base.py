r"""Contract of networks: F(z_t, t, c), whose meaning (eps, x0 or v) the kernel gives.

A conditioner brings in the image: concatenated to the state, or within the layers, by an image
branch that runs once per volume. Coordinates are concatenated, time, class and scalars become the
vector e; what is left to define is the body, (input, e) -> output, at any spatial size.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.conditioners._base import Body, Conditioner, Host, Prepared
from volumediff.config import build, component
from volumediff.networks._embedding import Embedding
from volumediff.networks._guidance_weight import GuidanceWeight
from volumediff.networks._latent_mapping import LatentMapping
from volumediff.networks._levels import Tap
from volumediff.networks._reference import ReferencedEmbedding
from volumediff.networks._spectral_mixing import SpectralMixing
from volumediff.networks._streamable import Streamable

__all__ = ["Anatomy", "Network"]


@dataclass(frozen=True, eq=False)
class Anatomy:
    """The halves of a network that has an encoder and a decoder.

    Arguments:
        stem: the layer that sees the input
        descent: parts on the way to the deepest features, the stem and the embedding among them
        head: parts after the decoder
        channels: of the deepest features
        factor: down-sampling per level and axis
    """

    stem: nn.Module
    descent: tuple[nn.Module, ...]
    head: tuple[nn.Module, ...]
    channels: int
    factor: tuple[int, int, int]


class Network(Streamable):
    """A function of the noisy state, the time and the condition.

    Arguments:
        in_channels: channels of the state z_t
        out_channels: channels of the output
        image_channels: channels of the image condition in state space, 0 for none
        classes: number of classes without the null class, which has the index `classes`
        scalars: number of scalar conditions
        reference_channels: channels of the state that conditions through a bottleneck, 0 for none
        coordinates: whether the position of each voxel in the full volume is an input
        scalar_channels: how many scalars are channels of the input, too, equal in all voxels
        frequencies: Fourier features of the time
        width: length of the embedding; None for four times the features
        embedding: another map (t, condition) -> e in place of `Embedding`
        conditioner: how the image reaches the layers, as in a configuration
        layers: of the body, for conditioners that act within it; None for a body without places

    Raises:
        ValueError: the conditioner acts within the body, which has no places
        UsageError: it cannot be built
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        image_channels: int = 0,
        classes: int = 0,
        scalars: int = 0,
        reference_channels: int = 0,
        coordinates: bool = False,
        scalar_channels: int = 0,
        frequencies: int = 64,
        width: int | None = None,
        embedding: nn.Module | None = None,
        conditioner: str | dict[str, Any] = "concat",
        layers: Body | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.image_channels = image_channels
        self.coordinates = coordinates
        self.scalar_channels = scalar_channels
        if embedding is None and reference_channels:
            embedding = ReferencedEmbedding(
                frequencies,
                channels=reference_channels,
                classes=classes,
                scalars=scalars,
                width=width,
            )
        elif embedding is None:
            embedding = Embedding(frequencies, classes=classes, scalars=scalars, width=width)
        self.embedding = embedding
        self.mapping: LatentMapping | None = None
        self.guidance: GuidanceWeight | None = None
        self.times: tuple[float, ...] = ()
        host = Host(in_channels, image_channels, embedding.width, layers)
        self.conditioner = self._conditioner(conditioner, host)

    def _conditioner(self, spec: str | dict[str, Any], host: Host) -> Conditioner:
        name = spec.get("name", "") if isinstance(spec, dict) else spec
        if name and host.body is None and component("conditioner", name).inside:
            raise ValueError(
                f"conditioner: expected concat for {type(self).__name__}, whose layers are those "
                f"of published checkpoints, got {name}; use the network unet or pseudo3d."
            )
        return build("conditioner", spec, host=host)

    @property
    def input_channels(self) -> int:
        """Channels of the body's input: state, what the conditioner adds, coordinates, scalars."""
        added = self.conditioner.input_channels + 3 * self.coordinates + self.scalar_channels
        return self.in_channels + added

    @property
    @abstractmethod
    def stride(self) -> tuple[int, int, int]:
        """Total stride; crops that start at its multiples see the grid of the whole volume."""

    def take_latent(self, length: int) -> None:
        """Makes the network one of samples: a random latent joins the embedding.

        Arguments:
            length: of the latent
        """
        self.mapping = LatentMapping(length, self.embedding.width)

    def take_guidance(self) -> None:
        """Makes the network one that is told the weight of a guidance."""
        self.guidance = GuidanceWeight(self.embedding.width)

    def take_trajectory(self, times: Sequence[float], *, modes: int) -> None:
        """Makes the network one of trajectories: of noise at t = 1, its output at all these times.

        Every level mixes the states of a trajectory, and starts without doing so.

        Arguments:
            times: M of them, as the network reads times, the last one that of the clean state
            modes: frequencies over the times that are mixed

        Raises:
            ValueError: it has no levels, or not so many frequencies
        """
        if not self.taps:
            raise ValueError(
                f"expected a network with levels, got {type(self).__name__}, which has none"
            )
        self.times = tuple(times)
        for tap in self.taps.values():
            tap.module.mixing = SpectralMixing(tap.channels, states=len(times), modes=modes)

    @property
    def latent_length(self) -> int:
        """Numbers of the random latent that the network takes; 0 for none."""
        return 0 if self.mapping is None else self.mapping.length

    @property
    def taps(self) -> Mapping[str, Tap]:
        """Places whose tensors serve as features, in the order in which they run; none here."""
        return {}

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        """The body, and the way to its deepest features."""
        return (self, "body"), (self, "deepest")

    @property
    def anatomy(self) -> Anatomy:
        """Its halves.

        Raises:
            ValueError: it has none
        """
        raise ValueError(
            f"expected a network with an encoder and a decoder, got {type(self).__name__}"
        )

    def deepen(self, count: int) -> None:
        """Gives the decoder heads on so many levels below the finest; see `SideHeads`.

        Raises:
            ValueError: it has no decoder, or not so many levels
        """
        raise ValueError(
            f"expected a network with levels of a decoder, got {type(self).__name__}; use "
            "deep_supervision=0"
        )

    def deepest(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"], prepared: Prepared = ()
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        """The deepest features on the concatenated input and the embedding.

        Raises:
            ValueError: it has no encoder
        """
        raise ValueError(f"expected a network with an encoder, got {type(self).__name__}")

    @abstractmethod
    def body(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"], prepared: Prepared = ()
    ) -> Float[Tensor, "b o d h w"]:
        """The network on its concatenated input and the embedding.

        Arguments:
            prepared: what the conditioner made of the image; given where it acts within the body
        """

    def prepare(self, condition: Condition) -> Condition:
        """The condition with what the conditioner makes of the image, once for all steps.

        Raises:
            ValueError: the image has not the channels that the network was built for
        """
        _check("image", condition.image, self.image_channels)
        image = condition.image
        prepared = () if image is None else self.conditioner.prepare(image)
        return condition.replace(prepared=prepared)

    def forward(
        self,
        z_t: Float[Tensor, "b k d h w"],
        t: Float[Tensor, "b"],
        condition: Condition | None = None,
    ) -> Float[Tensor, "_ o d h w"]:
        """Output in the dtype of z_t; of networks of trajectories at each of their times, those of
        a sample one after the other, whatever t is.

        Raises:
            ValueError: the condition has not what the network was built for
        """
        if self.times:
            z_t, t, condition = self._repeated(z_t, t, condition)
        return self.body(*self._inputs(z_t, t, condition))

    def features(
        self,
        z_t: Float[Tensor, "b k d h w"],
        t: Float[Tensor, "b"],
        condition: Condition | None = None,
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        """The deepest features, in the dtype of z_t, without the decoder.

        Raises:
            ValueError: the condition has not what the network was built for, or no encoder
        """
        return self.deepest(*self._inputs(z_t, t, condition))

    def _repeated(
        self, z_t: Tensor, t: Float[Tensor, "b"], condition: Condition | None
    ) -> tuple[Tensor, Float[Tensor, "_"], Condition]:
        """The same state at every time of a trajectory; the image is prepared once."""
        condition = condition or Condition()
        if condition.prepared is None:
            image = condition.image
            condition = condition.replace(image=None if image is None else image.to(z_t.dtype))
            condition = self.prepare(condition)
        states = len(self.times)

        def repeated(value: Tensor) -> Tensor:
            return value.repeat_interleave(states, dim=0)

        times = torch.tensor(self.times, dtype=t.dtype, device=t.device).repeat(len(z_t))
        return repeated(z_t), times, condition.map(repeated)

    def _inputs(
        self, z_t: Tensor, t: Float[Tensor, "b"], condition: Condition | None
    ) -> tuple[Any, ...]:
        """The concatenated input, the embedding and, for a body with places, what is prepared."""
        condition = condition or Condition()
        if condition.prepared is None:
            image = condition.image
            image = None if image is None else image.to(z_t.dtype)
            condition = self.prepare(condition.replace(image=image))
        parts = [z_t, *(v.to(z_t.dtype) for v in self.conditioner.inputs(condition.prepared))]
        # Coordinates are always at hand; a network that does not use them ignores them.
        if self.coordinates:
            _check("coordinates", condition.coordinates, 3)
            parts.append(condition.coordinates.to(z_t.dtype))
        # The embedding is small and sets every layer's scale: never below float32.
        dtype = torch.promote_types(z_t.dtype, torch.float32)
        e = self.embedding(t.to(dtype), condition)
        _check("latent", condition.latent, self.latent_length, unit="numbers")
        if self.mapping is not None:
            e = _plus(e, self.mapping(condition.latent.to(e.dtype)))
        if (condition.guidance is None) != (self.guidance is None):
            raise ValueError(
                "the network takes Condition.guidance exactly where it was distilled to be guided"
            )
        if self.guidance is not None:
            e = _plus(e, self.guidance(condition.guidance.to(e.dtype)))
        if self.scalar_channels:
            scalars = condition.scalars.to(z_t.dtype)[:, : self.scalar_channels, None, None, None]
            parts.append(scalars.expand(-1, -1, *z_t.shape[2:]))
        x = torch.cat(parts, dim=1) if len(parts) > 1 else z_t
        return (x, e, condition.prepared) if self.conditioner.places else (x, e)


def _plus(e: Float[Tensor, "b n"], added: Float[Tensor, "b w"]) -> Float[Tensor, "b n"]:
    """The embedding with something added; a context that follows it stays as it is."""
    width = added.shape[1]
    return torch.cat((e[:, :width] + added, e[:, width:]), dim=1)


def _check(name: str, tensor: Tensor | None, channels: int, *, unit: str = "channels") -> None:
    """Whether a condition has what the network was built for."""
    got = 0 if tensor is None else tensor.shape[1]
    if got != channels:
        raise ValueError(
            f"the network takes {channels} {unit} of Condition.{name}, got {got}: "
            f"{'set' if channels else 'leave out'} Condition.{name}"
        )
