"""3D U-Net with concatenated skips: computes what MONAI's published diffusion models compute.

Those are DiffusionModelUNet and DiffusionModelUNetMaisi, with self-attention, or with transformer
blocks that attend to a context of scalars. For new runs `unet` is the lighter architecture.
"""

from functools import partial
from typing import Any

from torch import nn

from volumediff.networks._attention import Attention, Backend
from volumediff.networks._block import ResidualBlock
from volumediff.networks._concat_hourglass import EPS, ConcatHourglass
from volumediff.networks._concat_unet import ConcatUNet, per_level
from volumediff.networks._embedding import WideEmbedding
from volumediff.networks._resample import Resampling
from volumediff.networks._transformer import SpatialTransformer

__all__ = ["MonaiUNet"]


class MonaiUNet(ConcatUNet):
    """U-Net of residual blocks with an added embedding and concatenated skips.

    Arguments:
        in_channels, out_channels, image_channels, classes, scalars: see `Network`
        widths: channels per level, finest first, multiples of `groups`
        blocks: residual blocks per level, one number or one per level; the decoder has one more
        attention_levels: levels with self-attention, 0 being the finest; the middle always has it
        head_size: channels of an attention head, one number or one per level
        groups: channel groups of the group normalisation
        resampling: between levels, a `convolution`, or a residual `block` that pools or repeats
        scalar_groups: see `WideEmbedding`
        context: length of a token of the context, 0 without; all scalars are then the context
        transformer_blocks: of every attention to a context
        scalar_channels: whether the scalars are channels of the input, too, equal in all voxels
        steps, offset: the network reads the time step `steps` t + `offset`: of T discrete steps
            k = 0..T-1 it is T and -1, of a flow in continuous time 1000 and 0
        coordinates: whether the position in the full volume is an input
        attention: backend of the attention
        conditioner: `concat`, the one that these networks take

    References:
        Pinaya et al. (2022), arXiv:2209.07162; Guo et al. (2024), MAISI, arXiv:2409.11169
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        image_channels: int = 0,
        classes: int = 0,
        scalars: int = 0,
        widths: tuple[int, ...] = (64, 128, 256, 512),
        blocks: int | tuple[int, ...] = 2,
        attention_levels: tuple[int, ...] = (),
        head_size: int | tuple[int, ...] = 8,
        groups: int = 32,
        resampling: Resampling = "convolution",
        scalar_groups: tuple[int, ...] = (),
        context: int = 0,
        transformer_blocks: int = 1,
        scalar_channels: bool = False,
        steps: int = 1000,
        offset: float = -1.0,
        coordinates: bool = False,
        attention: Backend = "auto",
        conditioner: str | dict[str, Any] = "concat",
    ) -> None:
        if context < 0 or (context and (scalars < 1 or scalars % context)):
            raise ValueError(
                f"context must divide the number of scalars, which are its tokens; got {context} "
                f"for {scalars} scalars"
            )
        if transformer_blocks < 1:
            raise ValueError(f"transformer_blocks must be positive, got {transformer_blocks}")
        embedding = WideEmbedding(
            widths[0] if widths else 0,
            classes=classes,
            scalars=scalars,
            scalar_groups=scalar_groups,
            context=scalars if context else 0,
            steps=steps,
            offset=offset,
        )
        super().__init__(
            in_channels,
            out_channels,
            image_channels=image_channels,
            coordinates=coordinates,
            scalar_channels=scalars if scalar_channels else 0,
            embedding=embedding,
            conditioner=conditioner,
        )
        head_sizes = per_level("head_size", head_size, len(widths))
        for level in sorted({*attention_levels, len(widths) - 1} & set(range(len(widths)))):
            if head_sizes[level] < 1 or widths[level] % head_sizes[level]:
                raise ValueError(
                    f"head_size {head_sizes[level]} must divide the width {widths[level]} of "
                    f"level {level}"
                )
        # A group may be a single channel.
        norm = {"groups": groups, "least": 1, "eps": EPS}

        def attending(level: int) -> nn.Module:
            named = {"head_size": head_sizes[level], "backend": attention, **norm}
            if not context:
                return Attention(widths[level], **named)
            begin = embedding.width
            return SpatialTransformer(
                widths[level], context, begin=begin, blocks=transformer_blocks, **named
            )

        self.hourglass = ConcatHourglass(
            self.input_channels,
            out_channels,
            widths=widths,
            blocks=per_level("blocks", blocks, len(widths)),
            attention_levels=attention_levels,
            block=partial(ResidualBlock, embedding=embedding.width, mode="additive", **norm),
            attention=attending,
            groups=groups,
            resampling=resampling,
        )
