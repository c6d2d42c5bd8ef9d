r"""A deep encoding of the image added to the state's first features, :math:`h = F(z_t) + G(x)`.

G is a residual-in-residual dense network (RRDB) without normalisation: no statistics, so that
crops and slabs see the function of the whole volume. At full resolution and with its 64 features
and dense blocks of 192 channels, it is the peak of the memory of most networks; it is free of
time, and runs once per volume.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.conditioners._base import STEM, Body, Conditioner, Host, Place, Prepared
from volumediff.networks._block import Recomputable
from volumediff.networks._streamable import Streamable

__all__ = ["AddConditioner"]

SLOPE = 0.2  # of the leaky ReLU
RESIDUAL = 0.2  # scale of a residual, at both levels
CONVOLUTIONS = 5  # of a dense block
DENSE_BLOCKS = 3  # of a residual-in-residual block


class AddConditioner(Conditioner):
    """The image through an RRDB, added after the network's first convolution.

    Arguments:
        blocks: residual-in-residual dense blocks; 12, 6 or 15 in the paper's configurations, 3 in
            the defaults of its code
        features: channels between the blocks
        growth: channels that every convolution of a dense block adds

    References:
        Amit et al. (2021), SegDiff, arXiv:2112.00390, whose code runs G again in every step;
        Wang et al. (2018), ESRGAN, arXiv:1809.00219, for the RRDB
    """

    def __init__(
        self, *, host: Host, blocks: int = 3, features: int = 64, growth: int = 32
    ) -> None:
        super().__init__()
        body, self.places = host.layers, frozenset({STEM})
        if min(blocks, features, growth) < 1:
            raise ValueError(
                "expected blocks, features and growth of at least 1, got "
                f"{blocks}, {features} and {growth}."
            )
        self.encoder = _RRDB(
            host.image_channels,
            body.widths[0],
            body,
            blocks=blocks,
            features=features,
            growth=growth,
        )

    def prepare(self, image: Float[Tensor, "b k d h w"]) -> Prepared:
        return (self.encoder(image),)

    def forward(
        self,
        h: Float[Tensor, "b c d2 h2 w2"],
        place: Place,
        carried: Prepared,
        e: Float[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], Prepared]:
        return h + carried[0], ()


class _RRDB(Streamable):
    """Convolution, dense blocks with a residual around all of them, two convolutions."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        body: Body,
        *,
        blocks: int,
        features: int,
        growth: int,
    ) -> None:
        super().__init__()
        conv, kernel = body.conv, body.kernel
        self.first = conv(in_channels, features, kernel=kernel)
        self.trunk = nn.ModuleList(_Residual(body, features, growth) for _ in range(blocks))
        self.end = conv(features, features, kernel=kernel)
        self.high = conv(features, features, kernel=kernel)
        self.last = conv(features, out_channels, kernel=kernel)

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        return ((self, "forward"),)

    def forward(self, x: Float[Tensor, "b i d h w"]) -> Float[Tensor, "b o d h w"]:
        x = self.first(x)
        h = x
        for block in self.trunk:
            h = block(h)
        h = x + self.end(h)
        return self.last(F.leaky_relu(self.high(h), SLOPE))


class _Residual(nn.Module):
    """Dense blocks in a row, and a residual around them."""

    def __init__(self, body: Body, features: int, growth: int) -> None:
        super().__init__()
        self.dense = nn.ModuleList(_Dense(body, features, growth) for _ in range(DENSE_BLOCKS))

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        h = x
        for block in self.dense:
            h = block(h)
        return h * RESIDUAL + x


class _Dense(Recomputable):
    """Convolutions each of which sees the input and the results of all before it."""

    def __init__(self, body: Body, features: int, growth: int) -> None:
        super().__init__()
        outputs = [growth] * (CONVOLUTIONS - 1) + [features]
        self.convs = nn.ModuleList(
            body.conv(features + i * growth, n, kernel=body.kernel) for i, n in enumerate(outputs)
        )

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        seen = x
        for layer in self.convs[:-1]:
            seen = torch.cat((seen, F.leaky_relu(layer(seen), SLOPE)), dim=1)
        return self.convs[-1](seen) * RESIDUAL + x
