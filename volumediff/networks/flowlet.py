"""3D U-Net with FiLM and attention by time and by condition: computes what FlowLet's computes.

For new runs `unet` is the lighter architecture.
"""

from functools import partial
from typing import Any

from volumediff.networks._attention import Backend
from volumediff.networks._block import ResidualBlock
from volumediff.networks._concat_hourglass import EPS, ConcatHourglass
from volumediff.networks._concat_unet import ConcatUNet, per_level
from volumediff.networks._context_attention import ContextAttention
from volumediff.networks._embedding import SplitEmbedding
from volumediff.networks._split_film import SplitFilm

__all__ = ["FlowLet"]


class FlowLet(ConcatUNet):
    """U-Net with concatenated skips whose blocks are modulated by time and then by condition.

    Arguments:
        in_channels, out_channels, image_channels, classes, scalars: see `Network`
        widths: channels per level, finest first, multiples of `groups`
        blocks: residual blocks per level, one number or one per level; the decoder has one more
        attention_levels: levels that attend, 0 being the finest; the middle always does
        heads: heads of the attention, one number or one per level
        groups: channel groups of the group normalisation
        condition: length of the embedding of class and scalars
        steps, offset: the network reads the time `steps` t + `offset`
        coordinates: whether the position in the full volume is an input
        attention: backend of the attention
        conditioner: `concat`, the one that this network takes

    References:
        Danese et al. (2026), FlowLet: Conditional 3D Brain MRI Synthesis using Wavelet Flow
        Matching, arXiv:2601.05212
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        image_channels: int = 0,
        classes: int = 0,
        scalars: int = 0,
        widths: tuple[int, ...] = (128, 256, 512, 1024),
        blocks: int | tuple[int, ...] = 2,
        attention_levels: tuple[int, ...] = (),
        heads: int | tuple[int, ...] = 8,
        groups: int = 32,
        condition: int = 512,
        steps: int = 1000,
        offset: float = 0.0,
        coordinates: bool = False,
        attention: Backend = "auto",
        conditioner: str | dict[str, Any] = "concat",
    ) -> None:
        embedding = SplitEmbedding(
            widths[0] if widths else 0,
            condition,
            classes=classes,
            scalars=scalars,
            steps=steps,
            offset=offset,
        )
        super().__init__(
            in_channels,
            out_channels,
            image_channels=image_channels,
            coordinates=coordinates,
            embedding=embedding,
            conditioner=conditioner,
        )
        numbers = per_level("heads", heads, len(widths))
        for level in sorted({*attention_levels, len(widths) - 1} & set(range(len(widths)))):
            if numbers[level] < 1 or widths[level] % numbers[level]:
                raise ValueError(
                    f"heads {numbers[level]} must divide the width {widths[level]} of level "
                    f"{level}"
                )

        def attending(level: int) -> ContextAttention:
            return ContextAttention(
                widths[level],
                embedding.parts,
                heads=numbers[level],
                groups=groups,
                backend=attention,
            )

        self.hourglass = ConcatHourglass(
            self.input_channels,
            out_channels,
            widths=widths,
            blocks=per_level("blocks", blocks, len(widths)),
            attention_levels=attention_levels,
            block=partial(
                ResidualBlock,
                groups=groups,
                least=1,
                eps=EPS,
                project=partial(SplitFilm, embedding.parts),
                shortcut_kernel=(3, 3, 3),
            ),
            attention=attending,
            groups=groups,
            resampling="block",
        )
