r"""A network of the image alone, whose features gate the state's first features,

.. math:: h + h \odot \sigma\big(W \max(g * f, f)\big),

with f its last features and g a Gaussian of learned width. It also predicts the clean state, as a
segmentation network does: the anchor. Everything but the gating is free of time.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.conditioners._base import Body, Conditioner, Host, Place, Prepared
from volumediff.networks._hourglass import Hourglass
from volumediff.networks._layers import Conv, conv
from volumediff.networks._streamable import Streamable

__all__ = ["AnchorConditioner"]

RADIUS = 3  # voxels of the Gaussian to each side
SIGMA = 1.0  # its standard deviation at the start, in voxels


class AnchorConditioner(Conditioner):
    """Uncertain spatial attention (U-SA), with a deterministic head as a second output.

    The head learns through the loss `anchor` alone, so that one is refused without the other.
    What it predicts by itself is what the diffusion has to beat.

    Arguments:
        head: whether the clean state is predicted; the loss `anchor` needs it
        blocks: residual blocks per level of the image network; None for those of the network

    References:
        Wu et al. (2023), MedSegDiff-V2, arXiv:2301.11798, equations 3 and 4
    """

    def __init__(self, *, host: Host, head: bool = True, blocks: int | None = None) -> None:
        super().__init__()
        body = host.layers
        self.places, self.anchors = frozenset({0}), head
        width = body.widths[0]
        self.image = _ImageNetwork(
            body, host.image_channels, body.blocks if blocks is None else blocks
        )
        self.gate = _Gate(body, width)
        self.head = Conv(width, host.channels, kernel=(1, 1, 1)) if head else None

    def prepare(self, image: Float[Tensor, "b k d h w"]) -> Prepared:
        f = self.image(image)
        return (self.gate(f),) if self.head is None else (self.gate(f), self.head(f))

    def forward(
        self,
        h: Float[Tensor, "b c d2 h2 w2"],
        place: Place,
        carried: Prepared,
        e: Float[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], Prepared]:
        return h * carried[0] + h, ()

    def anchor(self, prepared: Prepared) -> Float[Tensor, "b k d h w"] | None:
        return None if self.head is None else prepared[1]


class _ImageNetwork(Streamable):
    """A U-Net without time."""

    def __init__(self, body: Body, in_channels: int, blocks: int) -> None:
        super().__init__()
        self.hourglass = Hourglass(
            in_channels,
            body.widths[0],
            widths=body.widths,
            blocks=blocks,
            attention_levels=(),
            embedding=0,
            mode="film",
            norm=body.norm,
            groups=body.groups,
            kernel=body.kernel,
            factor=body.factor,
            conv=body.conv,
            plane=body.plane,
        )

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        return ((self, "features"),)

    def forward(self, image: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b c d h w"]:
        return self.features(image, image.new_empty((len(image), 0)))

    def features(
        self, image: Float[Tensor, "b k d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b c d h w"]:
        """The last features; e is empty."""
        return self.hourglass(image, e)


class _Gate(Streamable):
    """The share of every feature that is added, from features of the image."""

    def __init__(self, body: Body, width: int) -> None:
        super().__init__()
        self.axes = (1, 2) if body.plane else (0, 1, 2)
        self.log_sigma = nn.Parameter(torch.full((width,), SIGMA).log())
        self.mix = Conv(width, width, kernel=(1, 1, 1))

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        return ((self, "forward"),)

    def forward(self, f: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return torch.sigmoid(self.mix(torch.maximum(self._blurred(f), f)))

    def _blurred(self, f: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """One axis after the other. The kernels are written as full ones with zeros between
        channels: slabs know convolutions, and three lines of seven cost less than one cube of 27.
        """
        steps = torch.arange(-RADIUS, RADIUS + 1, device=f.device, dtype=self.log_sigma.dtype)
        g = torch.exp(-0.5 * (steps / self.log_sigma.exp()[:, None]).square())
        weight = torch.diag_embed((g / g.sum(1, keepdim=True)).T).permute(1, 2, 0)
        for axis in self.axes:
            kernel = [1, 1, 1]
            kernel[axis] = weight.shape[-1]
            padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
            f = conv(
                f,
                weight.reshape(*weight.shape[:2], *kernel),
                None,
                stride=(1, 1, 1),
                padding=padding,
            )
        return f
