"""3D U-Net with additive skips; the network of the patch, wavelet and latent pipelines."""

from collections.abc import Mapping
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from volumediff.conditioners._base import Body, Prepared
from volumediff.networks._attention import Backend
from volumediff.networks._base import Anatomy, Network
from volumediff.networks._hourglass import Hourglass
from volumediff.networks._levels import Tap, level_taps

__all__ = ["UNet"]


class UNet(Network):
    """U-Net of 3D residual blocks.

    Arguments:
        in_channels, out_channels, image_channels, classes, scalars, reference_channels: see
            `Network`
        widths: channels per level, finest first
        blocks: residual blocks per level, in the encoder and again in the decoder
        attention_levels: levels with self-attention, 0 being the finest
        norm: `group` normalises over the volume; `voxel` over the channels of each voxel, so that
            a network trained on crops computes the same function on the whole volume
        groups: channel groups of the group normalisation
        embedding: `film` scales and shifts, `additive` adds
        coordinates: whether the position in the full volume is an input
        attention: backend of the attention
        conditioner: how the image reaches the layers, a component of `volumediff.conditioners`
        kernel: of the convolutions, per axis
        factor: 1 or 2 per axis, the down-sampling per level

    References:
        Ho et al. (2020), DDPM, arXiv:2006.11239; Bieder et al. (2023), PatchDDM, arXiv:2303.15288
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        image_channels: int = 0,
        classes: int = 0,
        scalars: int = 0,
        reference_channels: int = 0,
        widths: tuple[int, ...] = (64, 128, 128, 256, 256),
        blocks: int = 2,
        attention_levels: tuple[int, ...] = (),
        norm: Literal["group", "voxel"] = "group",
        groups: int = 32,
        embedding: Literal["film", "additive"] = "film",
        coordinates: bool = False,
        attention: Backend = "auto",
        conditioner: str | dict[str, Any] = "concat",
        kernel: tuple[int, int, int] = (3, 3, 3),
        factor: tuple[int, int, int] = (2, 2, 2),
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            image_channels=image_channels,
            classes=classes,
            scalars=scalars,
            reference_channels=reference_channels,
            coordinates=coordinates,
            frequencies=widths[0] if widths else 0,
            conditioner=conditioner,
            layers=Body(
                widths,
                blocks,
                norm=norm,
                groups=groups,
                kernel=kernel,
                factor=factor,
                backend=attention,
            ),
        )
        self.hourglass = Hourglass(
            self.input_channels,
            out_channels,
            widths=widths,
            blocks=blocks,
            attention_levels=attention_levels,
            embedding=self.embedding.width,
            mode=embedding,
            norm=norm,
            groups=groups,
            kernel=kernel,
            factor=factor,
            backend=attention,
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
        descent = (self.embedding, self.conditioner, *body.descent)
        head = body.act, body.head
        return Anatomy(body.stem, descent, head, body.widths[-1], body.factor)

    def deepen(self, count: int) -> None:
        self.hourglass.deepen(count)

    def deepest(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"], prepared: Prepared = ()
    ) -> Float[Tensor, "b c d2 h2 w2"]:
        return self.hourglass.descend(x, e, self.conditioner, prepared)[0]

    def body(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"], prepared: Prepared = ()
    ) -> Float[Tensor, "b o d h w"]:
        return self.hourglass(x, e, self.conditioner, prepared)
