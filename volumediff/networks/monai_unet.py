"""3D U-Net with concatenated skips: computes what MONAI's published diffusion models compute.

Those are DiffusionModelUNet and DiffusionModelUNetMaisi, with self-attention, or with transformer
blocks that attend to a context of scalars. For new runs `unet` is the lighter architecture.
"""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor

from volumediff.networks._attention import Backend
from volumediff.networks._base import Anatomy, Network
from volumediff.networks._concat_hourglass import ConcatHourglass
from volumediff.networks._embedding import WideEmbedding
from volumediff.networks._levels import Tap, level_taps
from volumediff.networks._resample import Resampling

__all__ = ["MonaiUNet"]


class MonaiUNet(Network):
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
        self.context = context
        self.hourglass = ConcatHourglass(
            self.input_channels,
            out_channels,
            widths=widths,
            blocks=_per_level("blocks", blocks, len(widths)),
            attention_levels=attention_levels,
            head_sizes=_per_level("head_size", head_size, len(widths)),
            embedding=embedding.width,
            groups=groups,
            resampling=resampling,
            backend=attention,
            context=context,
            transformer_blocks=transformer_blocks,
        )

    @property
    def stride(self) -> tuple[int, int, int]:
        return self.hourglass.stride

    @property
    def taps(self) -> Mapping[str, Tap]:
        body = self.hourglass
        return level_taps(body.encoder, body.middle, body.decoder)

    @property
    def anatomy(self) -> Anatomy:
        body = self.hourglass
        descent = (self.embedding, *body.descent)
        head = body.act, body.head
        return Anatomy(body.stem, descent, head, body.widths[-1], body.factor)

    def deepen(self, count: int) -> None:
        self.hourglass.deepen(count)

    def deepest(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        return self.hourglass.descend(x, *self._split(e))[0]

    def body(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b o d h w"]:
        return self.hourglass(x, *self._split(e))

    def _split(
        self, e: Float[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b w"], Float[Tensor, "b m o"] | None]:
        """The embedding of the blocks, and the tokens of the context."""
        if not self.context:
            return e, None
        width = self.embedding.width
        return e[:, :width], e[:, width:].unflatten(1, (-1, self.context))


def _per_level(name: str, value: int | tuple[int, ...], levels: int) -> tuple[int, ...]:
    values = (value,) * levels if isinstance(value, int) else tuple(value)
    if len(values) != levels:
        raise ValueError(
            f"{name} {values}: expected one number, or one for each of {levels} levels"
        )
    return values
