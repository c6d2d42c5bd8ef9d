"""The image beside the state, as further channels of the network's input."""

from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from volumediff.conditioners._base import Conditioner, Host, Place, Prepared

__all__ = ["ConcatConditioner"]


class ConcatConditioner(Conditioner):
    """Concatenation, [z_t, x]; there is no image branch.

    References:
        Saharia et al. (2022), Palette, arXiv:2111.05826
    """

    inside: ClassVar[bool] = False

    def __init__(self, *, host: Host) -> None:
        super().__init__()
        self.input_channels = host.image_channels

    def prepare(self, image: Float[Tensor, "b k d h w"]) -> Prepared:
        return (image,)

    def inputs(self, prepared: Prepared) -> tuple[Float[Tensor, "b _ d h w"], ...]:
        return prepared

    def forward(
        self,
        h: Float[Tensor, "b c d2 h2 w2"],
        place: Place,
        carried: Prepared,
        e: Float[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], Prepared]:
        return h, carried
