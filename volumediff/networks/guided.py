r"""The U-Net of the guided-diffusion lineage, as WDM, cWDM and PatchDDM publish it.

Compared with `unet`: a skip is :math:`(h + s) / 2` or concatenated; the stem and every
down-sampling are skips too, so that the decoder has one block more per level than the encoder;
and groups may hold a single channel. Sizes that 2 does not divide, which the published code
refuses, are cut as everywhere here: ceil(size / 2) per level.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._attention import Attention, Backend
from volumediff.networks._base import Anatomy, Network
from volumediff.networks._block import ResidualBlock
from volumediff.networks._embedding import Embedding
from volumediff.networks._hourglass import HourglassStage
from volumediff.networks._layers import Conv, NormAct
from volumediff.networks._levels import Tap, descend, enlarge, level_taps, place_levels
from volumediff.networks._resample import Down, Nearest, Pool, Resampling, UpConv
from volumediff.networks._side_heads import SideHeads

__all__ = ["Guided"]


class Guided(Network):
    """U-Net of residual blocks, with the decoder and the skips of guided diffusion.

    Arguments:
        in_channels, out_channels, image_channels, classes, scalars: see `Network`
        widths: channels per level, finest first
        blocks: residual blocks per level of the encoder; the decoder has one more
        attention_levels: levels with self-attention, 0 being the finest
        groups: channel groups of every normalisation, a divisor of all widths; None for half the
            finest width, which leaves two channels in its groups
        embedding: `film` scales and shifts, `additive` adds
        skips: `mean` is (h + s) / 2 (WDM, PatchDDM), `concatenated` [h, s] (cWDM), which the
            decoder's blocks take in as they run, so that no concatenation is stored
        resampling: `block` pools and repeats within a residual block of its own (WDM),
            `convolution` has strided convolutions and convolves what was repeated (PatchDDM)
        down_kernel: of the strided convolutions, per axis
        coordinates: whether the position in the full volume is an input
        steps: T, the number of steps on whose scale the time is embedded; published networks of
            few steps have these few
        attention: backend of the attention
        conditioner: `concat`, the one that these networks take

    References:
        Dhariwal, Nichol (2021), arXiv:2105.05233; Bieder et al. (2023), PatchDDM,
        arXiv:2303.15288; Friedrich et al. (2024), WDM, arXiv:2402.19043, and cWDM,
        arXiv:2411.17203
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        image_channels: int = 0,
        classes: int = 0,
        scalars: int = 0,
        widths: tuple[int, ...] = (64, 128, 128, 256, 256),
        blocks: int = 2,
        attention_levels: tuple[int, ...] = (),
        groups: int | None = None,
        embedding: Literal["film", "additive"] = "additive",
        skips: Literal["mean", "concatenated"] = "mean",
        resampling: Resampling = "block",
        down_kernel: tuple[int, int, int] = (3, 3, 3),
        coordinates: bool = False,
        steps: int = 1000,
        attention: Backend = "auto",
        conditioner: str | dict[str, Any] = "concat",
    ) -> None:
        groups = _checked(widths, blocks, attention_levels, groups)
        super().__init__(
            in_channels,
            out_channels,
            image_channels=image_channels,
            classes=classes,
            scalars=scalars,
            coordinates=coordinates,
            embedding=Embedding(
                widths[0], classes=classes, scalars=scalars, width=4 * widths[0], steps=steps
            ),
            conditioner=conditioner,
        )
        vector = self.embedding.width

        def block(
            inner: int, outer: int | None = None, resample: nn.Module | None = None
        ) -> ResidualBlock:
            return ResidualBlock(
                inner,
                outer or inner,
                embedding=vector,
                mode=embedding,
                groups=groups,
                least=1,
                resample=resample,
            )

        def stage(level: int, inner: int, outer: int) -> HourglassStage:
            attends = level in attention_levels
            attending = Attention(outer, groups=groups, backend=attention) if attends else None
            return HourglassStage(block(inner, outer), attending)

        last, joined = len(widths) - 1, skips == "concatenated"
        finer = (widths[0], *widths)  # what comes from the next finer level, or the stem
        pools = resampling == "block"
        self.stem = Conv(self.input_channels, widths[0])
        self.encoder = nn.ModuleList(
            nn.ModuleList(stage(i, w if k else finer[i], w) for k in range(blocks))
            for i, w in enumerate(widths)
        )
        self.down = nn.ModuleList(
            block(w, resample=Pool()) if pools else Down(w, w, kernel=down_kernel)
            for w in widths[:last]
        )
        self.middle = nn.ModuleList(stage(last, widths[last], widths[last]) for _ in range(2))

        def level(i: int, w: int) -> Iterator[tuple[int, int]]:
            """Widths of the decoder's blocks on a level: of what they take, and what they give."""
            below = widths[min(i + 1, last)]
            for k in range(blocks + 1):
                skip = w if k < blocks else finer[i]
                if joined:
                    yield (w if k else below) + skip, w
                else:  # what a block gives has the width of the skip that the next one takes
                    yield skip, w if k < blocks - 1 else finer[i]

        self.decoder = nn.ModuleList(
            nn.ModuleList(stage(i, *widths_of) for widths_of in level(i, w))
            for i, w in enumerate(widths)
        )
        risen = widths[1:] if joined else widths[:last]  # what comes up from the coarser level
        self.up = nn.ModuleList(
            block(w, resample=Nearest()) if pools else UpConv(w) for w in risen
        )
        place_levels(self.encoder, self.middle, self.decoder, self.down, self.up)
        self.act = NormAct(widths[0], groups=groups, least=1)
        self.head = Conv(widths[0], out_channels, zero=True)
        self.widths, self.joined = tuple(widths), joined
        self.sides: SideHeads | None = None

    @property
    def anatomy(self) -> Anatomy:
        descent = self.embedding, self.stem, self.encoder, self.down, self.middle
        head = self.act, self.head
        return Anatomy(self.stem, descent, head, self.widths[-1], (2, 2, 2))

    def deepen(self, count: int) -> None:
        # Without concatenation a level ends with the width of the next finer one.
        ends = self.widths if self.joined else (self.widths[0], *self.widths[:-1])
        self.sides = SideHeads(ends, self.out_channels, count=count, factor=(2, 2, 2))

    def deepest(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        return self._descend(x, e)[0]

    @property
    def stride(self) -> tuple[int, int, int]:
        factor = 2 ** len(self.down)
        return factor, factor, factor

    @property
    def taps(self) -> Mapping[str, Tap]:
        return level_taps(self.encoder, self.middle, self.decoder)

    def body(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b o d h w"]:
        h, skips = self._descend(x, e)
        sides = []
        for level in reversed(range(len(self.decoder))):
            for stage in self.decoder[level]:
                if self.joined:
                    h = stage(h, e, skips.pop())
                else:
                    # In place: h is the sum that a block ends with, which nothing else needs.
                    h = stage(h.add_(skips.pop()).mul_(0.5), e)
            if self.sides is not None:
                sides += self.sides.read(level, h)
            if level > 0:
                h = enlarge(self.up[level - 1], h, e, skips[-1].shape[2:])
        y = self.head(self.act(h))
        return y if self.sides is None else self.sides.beside(y, sides)

    def _descend(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], list[Tensor]]:
        h, skips = descend(self.stem(x), e, self.encoder, self.down)
        for stage in self.middle:
            h = stage(h, e)
        return h, skips


def _checked(
    widths: Sequence[int], blocks: int, attention_levels: Sequence[int], groups: int | None
) -> int:
    """The number of groups, for arguments that fit together."""
    if not widths or min(widths) < 1 or blocks < 1:
        raise ValueError(
            f"expected at least one level of positive width and one block, got widths "
            f"{tuple(widths)} and blocks {blocks}"
        )
    if not set(attention_levels) <= set(range(len(widths))):
        raise ValueError(
            f"attention_levels {tuple(attention_levels)} must be levels of the network, "
            f"0 (finest) to {len(widths) - 1}"
        )
    groups = max(1, widths[0] // 2) if groups is None else groups
    if groups < 1 or any(w % groups for w in widths):
        raise ValueError(f"groups must divide all widths {tuple(widths)}, got {groups}")
    return groups
