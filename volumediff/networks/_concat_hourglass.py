"""The U-shaped body with concatenated skips, of which MONAI's diffusion networks and FlowLet's
are made.

Every layer of the encoder is a skip, the stem and the changes of the grid included, so that a
level of the decoder has one block more than in the encoder. A decoder block takes the skip beside
its input and concatenates inside: under recomputation no concatenation is stored.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._block import ResidualBlock
from volumediff.networks._hourglass import HourglassStage
from volumediff.networks._layers import Conv, NormAct
from volumediff.networks._levels import descend, enlarge, place_levels
from volumediff.networks._resample import Down, Nearest, Pool, Resampling, UpConv
from volumediff.networks._side_heads import SideHeads

__all__ = ["EPS", "ConcatHourglass"]

EPS = 1e-6  # of the normalisations in MONAI's networks and FlowLet's


class ConcatHourglass(nn.Module):
    """Encoder and decoder over `widths`; ceil(size / 2) per level, any size.

    Arguments:
        in_channels, out_channels: numbers of channels
        widths: channels per level, finest first
        blocks: residual blocks per level of the encoder; the decoder has one more
        attention_levels: levels whose blocks attend, 0 being the finest; the middle always does
        block: makes a residual block of its numbers of channels, and of `resample`
        attention: makes the attention of a level
        groups: channel groups of every normalisation, a divisor of all widths
        resampling: how the grid changes between levels
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        widths: Sequence[int],
        blocks: Sequence[int],
        attention_levels: Sequence[int],
        block: Callable[..., ResidualBlock],
        attention: Callable[[int], nn.Module],
        groups: int,
        resampling: Resampling,
    ) -> None:
        super().__init__()
        last = len(widths) - 1
        _check(widths, blocks, attention_levels, groups)

        def stage(level: int, inputs: int) -> HourglassStage:
            attends = level in attention_levels
            return HourglassStage(
                block(inputs, widths[level]), attention(level) if attends else None
            )

        def down(width: int) -> nn.Module:
            if resampling == "convolution":
                return Down(width, width)
            return block(width, width, resample=Pool())

        def up(width: int) -> nn.Module:
            if resampling == "convolution":
                return UpConv(width)
            return block(width, width, resample=Nearest())

        self.widths, self.out_channels = tuple(widths), out_channels
        self.stride, self.factor = (2**last,) * 3, (2, 2, 2)
        self.stem = Conv(in_channels, widths[0])
        self.encoder = nn.ModuleList()
        self.decoder = nn.ModuleList()
        for level, width in enumerate(widths):
            finer, coarser = widths[max(level - 1, 0)], widths[min(level + 1, last)]
            inputs = [finer] + [width] * (blocks[level] - 1)
            self.encoder.append(nn.ModuleList(stage(level, i) for i in inputs))
            # What comes from below or before, and the skips: the blocks', last the one of the
            # finer level's change of grid, or of the stem.
            inputs = [coarser] + [width] * blocks[level]
            skips = [width] * blocks[level] + [finer]
            pairs = zip(inputs, skips, strict=True)
            self.decoder.append(nn.ModuleList(stage(level, i + s) for i, s in pairs))
        self.down = nn.ModuleList(down(width) for width in widths[:-1])
        self.up = nn.ModuleList(up(width) for width in widths[1:])
        self.middle = nn.ModuleList(
            HourglassStage(block(widths[-1], widths[-1]), attends)
            for attends in (attention(last), None)
        )
        place_levels(self.encoder, self.middle, self.decoder, self.down, self.up)
        # A group may be a single channel.
        self.act = NormAct(widths[0], groups=groups, least=1, eps=EPS)
        self.head = Conv(widths[0], out_channels, zero=True)
        self.sides: SideHeads | None = None

    @property
    def descent(self) -> tuple[nn.Module, ...]:
        """Parts on the way to the deepest features."""
        return self.stem, self.encoder, self.down, self.middle

    def deepen(self, count: int) -> None:
        """See `Network.deepen`."""
        self.sides = SideHeads(self.widths, self.out_channels, count=count, factor=self.factor)

    def descend(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], list[Tensor]]:
        """The deepest features, and the skips."""
        h, skips = descend(self.stem(x), e, self.encoder, self.down)
        for stage in self.middle:
            h = stage(h, e)
        return h, skips

    def forward(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b o d h w"]:
        h, skips = self.descend(x, e)
        sides = []
        for level in reversed(range(len(self.decoder))):
            for stage in self.decoder[level]:
                h = stage(h, e, skips.pop())
            if self.sides is not None:
                sides += self.sides.read(level, h)
            if level > 0:
                h = enlarge(self.up[level - 1], h, e, skips[-1].shape[2:])
        y = self.head(self.act(h))
        return y if self.sides is None else self.sides.beside(y, sides)


def _check(
    widths: Sequence[int],
    blocks: Sequence[int],
    attention_levels: Sequence[int],
    groups: int,
) -> None:
    if not widths or min(widths) < 1 or min(blocks) < 1:
        raise ValueError(
            f"expected at least one level of positive width and one block per level, got widths "
            f"{tuple(widths)} and blocks {tuple(blocks)}"
        )
    if not set(attention_levels) <= set(range(len(widths))):
        raise ValueError(
            f"attention_levels {tuple(attention_levels)} must be levels of the network, "
            f"0 (finest) to {len(widths) - 1}"
        )
    if groups < 1 or any(width % groups for width in widths):
        raise ValueError(f"groups must divide all widths {tuple(widths)}, got {groups}")
