r"""The U-shaped body shared by the networks: encoder, middle, decoder with additive skips.

A skip is added, :math:`(h + s) / \sqrt 2`, not concatenated: decoder blocks keep their width, and
no tensor of twice the channels is ever stored. For two signals of unit variance that are
uncorrelated the factor keeps the variance at 1; dividing by 2 would halve it at every skip.

References:
    Bieder et al. (2023), PatchDDM, arXiv:2303.15288
    Friedrich et al. (2024), WDM, arXiv:2402.19043
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.conditioners._base import MIDDLE, STEM, Conditioner, Place, Prepared
from volumediff.networks._attention import Attention, Backend
from volumediff.networks._block import ResidualBlock, place
from volumediff.networks._layers import Conv, NormAct, NormKind, Triple
from volumediff.networks._resample import Down, Up
from volumediff.networks._side_heads import SideHeads
from volumediff.networks._spectral_mixing import SpectralMixing

__all__ = ["Hourglass", "HourglassStage"]


class HourglassStage(nn.Module):
    """A residual block, then attention where there is one, then the mixing of trajectories.

    Attention that is `conditioned` reads the embedding too.
    """

    def __init__(self, block: ResidualBlock, attention: nn.Module | None) -> None:
        super().__init__()
        self.block = block
        self.attention = attention
        self.mixing: SpectralMixing | None = None

    def forward(
        self,
        x: Float[Tensor, "b _ d h w"],
        e: Float[Tensor, "b n"],
        skip: Float[Tensor, "b _ d h w"] | None = None,
    ) -> Float[Tensor, "b o d h w"]:
        h = self.block(x, e, None, skip)
        if self.attention is not None:
            h = self.attention(h, e) if self.attention.conditioned else self.attention(h)
        return h if self.mixing is None else self.mixing(h)


class Hourglass(nn.Module):
    """Encoder and decoder over `widths`; ceil(size / 2) per level, any size.

    Arguments:
        in_channels, out_channels: numbers of channels
        widths: channels per level, finest first
        blocks: residual blocks per level, in the encoder and again in the decoder
        attention_levels: levels whose blocks attend, 0 being the finest
        embedding: length of the embedding vector
        mode: how it enters the blocks
        norm, groups: see `Norm`
        kernel: of the convolutions
        factor: down-sampling per level and axis
        conv: the convolution of the blocks
        backend: of the attention
        plane: attention within slices
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int],
        blocks: int,
        attention_levels: Sequence[int],
        embedding: int,
        mode: Literal["film", "additive"],
        norm: NormKind,
        groups: int,
        kernel: Triple,
        factor: Triple,
        conv: Callable[..., nn.Module] = Conv,
        backend: Backend = "auto",
        plane: bool = False,
    ) -> None:
        super().__init__()
        levels = range(len(widths))
        if not widths or min(widths) < 1 or blocks < 1:
            raise ValueError(
                f"expected at least one level of positive width and one block, got widths "
                f"{tuple(widths)} and blocks {blocks}"
            )
        if not set(attention_levels) <= set(levels):
            raise ValueError(
                f"attention_levels {tuple(attention_levels)} must be levels of the network, "
                f"0 (finest) to {len(widths) - 1}"
            )

        def stage(level: int) -> HourglassStage:
            width = widths[level]
            block = ResidualBlock(
                width,
                width,
                embedding=embedding,
                mode=mode,
                kernel=kernel,
                norm=norm,
                groups=groups,
                conv=conv,
            )
            attention = None
            if level in attention_levels:
                attention = Attention(
                    width, norm=norm, groups=groups, backend=backend, plane=plane
                )
            made = HourglassStage(block, attention)
            place(level, made)
            return made

        last = levels[-1]
        self.widths, self.factor = tuple(widths), factor
        self.stride = tuple(f**last for f in factor)
        self.stem = conv(in_channels, widths[0], kernel=kernel)
        self.encoder = nn.ModuleList(
            nn.ModuleList(stage(level) for _ in range(blocks)) for level in levels
        )
        self.down = nn.ModuleList(
            Down(widths[i], widths[i + 1], factor=factor, kernel=kernel, conv=conv)
            for i in range(last)
        )
        self.middle = nn.ModuleList(stage(last) for _ in range(2))
        self.decoder = nn.ModuleList(
            nn.ModuleList(stage(level) for _ in range(blocks)) for level in levels
        )
        self.up = nn.ModuleList(Up(widths[i + 1], widths[i], factor=factor) for i in range(last))
        self.act = NormAct(widths[0], norm=norm, groups=groups)
        self.head = conv(widths[0], out_channels, kernel=kernel, zero=True)
        self.out_channels = out_channels
        self.sides: SideHeads | None = None

    @property
    def descent(self) -> tuple[nn.Module, ...]:
        """Parts on the way to the deepest features."""
        return self.stem, self.encoder, self.down, self.middle

    def deepen(self, count: int) -> None:
        """See `Network.deepen`."""
        self.sides = SideHeads(self.widths, self.out_channels, count=count, factor=self.factor)

    def descend(
        self,
        x: Float[Tensor, "b i d h w"],
        e: Float[Tensor, "b n"],
        conditioner: Conditioner | None = None,
        prepared: Prepared = (),
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], list[Tensor]]:
        """The deepest features, and the skips.

        Arguments:
            conditioner: what acts at its places on the way
            prepared: what it made of the image
        """
        carried = prepared

        def conditioned(h: Tensor, place: Place) -> Tensor:
            nonlocal carried
            if conditioner is None or place not in conditioner.places:
                return h
            h, carried = conditioner(h, place, carried, e)
            return h

        h = conditioned(self.stem(x), STEM)
        skips = []
        for level, stages in enumerate(self.encoder):
            for stage in stages:
                h = stage(h, e)
                skips.append(h)
            skips[-1] = h = conditioned(h, level)
            if level < len(self.down):
                h = self.down[level](h)
        h = conditioned(self.middle[0](h, e), MIDDLE)
        return self.middle[1](h, e), skips

    def forward(
        self,
        x: Float[Tensor, "b i d h w"],
        e: Float[Tensor, "b n"],
        conditioner: Conditioner | None = None,
        prepared: Prepared = (),
    ) -> Float[Tensor, "b o d h w"]:
        h, skips = self.descend(x, e, conditioner, prepared)
        sides = []
        for level in reversed(range(len(self.decoder))):
            for stage in self.decoder[level]:
                h = stage((h + skips.pop()).mul_(math.sqrt(0.5)), e)
            if self.sides is not None:
                sides += self.sides.read(level, h)
            if level > 0:
                h = self.up[level - 1](h, skips[-1].shape[2:])
        y = self.head(self.act(h))
        return y if self.sides is None else self.sides.beside(y, sides)
