r"""Contract of networks: F(z_t, t, c), whose meaning (eps, x0 or v) the kernel gives.

Image conditions and coordinates are concatenated to the state, time, class and scalars become the
vector e; what is left to define is the body, (input, e) -> output, at any spatial size.
"""

from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.condition import Condition
from volumediff.networks._embedding import Embedding
from volumediff.networks._reference import ReferencedEmbedding
from volumediff.networks._streamable import Streamable

__all__ = ["Network"]


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
        frequencies: Fourier features of the time
        width: length of the embedding; None for four times the features
        embedding: another map (t, condition) -> e in place of `Embedding`
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
        frequencies: int = 64,
        width: int | None = None,
        embedding: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.image_channels = image_channels
        self.coordinates = coordinates
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

    @property
    def input_channels(self) -> int:
        """Channels of the body's input: state, image condition, coordinates."""
        return self.in_channels + self.image_channels + 3 * self.coordinates

    @property
    @abstractmethod
    def stride(self) -> tuple[int, int, int]:
        """Total stride; crops that start at its multiples see the grid of the whole volume."""

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        """The body."""
        return ((self, "body"),)

    @abstractmethod
    def body(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b o d h w"]:
        """The network on its concatenated input and the embedding."""

    def prepare(self, condition: Condition) -> Condition:
        """The condition with what does not depend on state and time computed beforehand."""
        return condition

    def forward(
        self,
        z_t: Float[Tensor, "b k d h w"],
        t: Float[Tensor, "b"],
        condition: Condition | None = None,
    ) -> Float[Tensor, "b o d h w"]:
        """Output in the dtype of z_t.

        Raises:
            ValueError: the condition has not what the network was built for
        """
        condition = condition or Condition()
        parts = [z_t]
        for name, tensor, channels in (
            ("image", condition.image, self.image_channels),
            ("coordinates", condition.coordinates, 3 * self.coordinates),
        ):
            got = 0 if tensor is None else tensor.shape[1]
            # Coordinates are always at hand; a network that does not use them ignores them.
            if got != channels and (channels or name == "image"):
                raise ValueError(
                    f"the network takes {channels} channels of Condition.{name}, got {got}: "
                    f"{'set' if channels else 'leave out'} Condition.{name}"
                )
            if tensor is not None and channels:
                parts.append(tensor.to(z_t.dtype))
        # The embedding is small and sets every layer's scale: never below float32.
        dtype = torch.promote_types(z_t.dtype, torch.float32)
        e = self.embedding(t.to(dtype), condition)
        return self.body(torch.cat(parts, dim=1) if len(parts) > 1 else z_t, e)
