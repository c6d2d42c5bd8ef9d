"""An encoder of the image with the levels of the network that it conditions, free of time."""

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.conditioners._base import Body
from volumediff.networks._block import ResidualBlock, place
from volumediff.networks._resample import Down
from volumediff.networks._streamable import Streamable

__all__ = ["EncoderLevel", "ImageEncoder", "block_of"]


def block_of(body: Body, in_channels: int, out_channels: int, **more: int) -> ResidualBlock:
    """A residual block as the network has them; without embedding unless its length is given."""
    return ResidualBlock(
        in_channels,
        out_channels,
        kernel=body.kernel,
        norm=body.norm,
        groups=body.groups,
        conv=body.conv,
        **more,
    )


class EncoderLevel(Streamable):
    """A change to the level's grid and width, then residual blocks.

    Arguments:
        body: of the network
        level: 0 is the finest
        in_channels: of the image, or of the next finer level
    """

    def __init__(self, body: Body, level: int, in_channels: int) -> None:
        super().__init__()
        width = body.widths[level]
        self.enter = (
            Down(in_channels, width, factor=body.factor, kernel=body.kernel, conv=body.conv)
            if level
            else body.conv(in_channels, width, kernel=body.kernel)
        )
        self.blocks = nn.ModuleList(block_of(body, width, width) for _ in range(body.blocks))
        place(level, self)

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        return ((self, "forward"),)

    def forward(self, x: Float[Tensor, "b i d h w"]) -> Float[Tensor, "b o d2 h2 w2"]:
        h = self.enter(x)
        for block in self.blocks:
            h = block(h)
        return h


class ImageEncoder(nn.Module):
    """Features of an image on the grid of every level of a network.

    Arguments:
        body: of the network
        in_channels: of the image
        last: the coarsest level; None for that of the network
    """

    def __init__(self, body: Body, in_channels: int, *, last: int | None = None) -> None:
        super().__init__()
        inputs = (in_channels, *body.widths[: body.last if last is None else last])
        self.levels = nn.ModuleList(EncoderLevel(body, i, n) for i, n in enumerate(inputs))

    def forward(self, image: Float[Tensor, "b k d h w"]) -> tuple[Tensor, ...]:
        """One volume per level, finest first."""
        features = []
        for level in self.levels:
            image = level(image)
            features.append(image)
        return tuple(features)
