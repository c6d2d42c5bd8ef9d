r"""Pseudo-3D network: 2D layers, each followed by a 1D layer through the plane.

The volume is a stack of d slices (h, w). Convolutions are 1 x k x k, then k x 1 x 1; resampling
keeps d, so that every number of slices is legal, one included. The 1D layers start as the identity
and the statistics of the group normalisation belong to one slice, hence the untrained network, and
a 2D network just inflated, is the 2D network applied to each slice.

Recipe: train with `through_plane: false` on slices or stacks (the 2D network), then
`inflate(weights)` gives the weights of the same network with `through_plane: true`.

References:
    Zhu et al. (2023), Make-A-Volume, arXiv:2307.10094
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.conditioners._base import Body, Prepared
from volumediff.networks._attention import Backend
from volumediff.networks._base import Anatomy, Network
from volumediff.networks._hourglass import Hourglass
from volumediff.networks._layers import PlaneConv
from volumediff.networks._levels import Tap, level_taps

__all__ = ["Pseudo3D", "inflate"]

PLANE, THROUGH = "in_plane.weight", "through_plane"


class Pseudo3D(Network):
    """U-Net of plane convolutions over a stack of slices.

    Arguments:
        in_channels, out_channels, image_channels, classes, scalars, reference_channels: see
            `Network`
        widths: channels per level, finest first
        blocks: residual blocks per level, in the encoder and again in the decoder
        attention_levels: levels with self-attention within each slice, 0 being the finest
        norm: `group` normalises over each slice; `voxel` over the channels of each voxel
        groups: channel groups of the group normalisation
        embedding: `film` scales and shifts, `additive` adds
        coordinates: whether the position in the full volume is an input
        attention: backend of the attention
        conditioner: how the image reaches the layers, a component of `volumediff.conditioners`
        through_plane: False leaves the 1D layers out: the 2D network
        kernel: k of both layers
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
        widths: tuple[int, ...] = (64, 128, 256, 256),
        blocks: int = 2,
        attention_levels: tuple[int, ...] = (),
        norm: Literal["group", "voxel"] = "group",
        groups: int = 32,
        embedding: Literal["film", "additive"] = "film",
        coordinates: bool = False,
        attention: Backend = "auto",
        conditioner: str | dict[str, Any] = "concat",
        through_plane: bool = True,
        kernel: int = 3,
    ) -> None:
        layers = Body(
            widths,
            blocks,
            norm="slice" if norm == "group" else norm,
            groups=groups,
            kernel=(kernel, kernel, kernel),
            factor=(1, 2, 2),
            conv=partial(PlaneConv, through_plane=through_plane),
            plane=True,
            backend=attention,
        )
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
            layers=layers,
        )
        self.hourglass = Hourglass(
            self.input_channels,
            out_channels,
            widths=widths,
            blocks=blocks,
            attention_levels=attention_levels,
            embedding=self.embedding.width,
            mode=embedding,
            norm=layers.norm,
            groups=groups,
            kernel=layers.kernel,
            factor=layers.factor,
            conv=layers.conv,
            backend=attention,
            plane=True,
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


def inflate(weights: Mapping[str, Tensor], *, kernel: int = 3) -> dict[str, Tensor]:
    """Weights of the 2D network -> weights of the pseudo-3D network that starts as it.

    Every convolution within the plane gains an identity through the plane.

    Arguments:
        weights: state dict of a `Pseudo3D` with through_plane=False (or of a part of one)
        kernel: size of the through-plane layers

    Raises:
        ValueError: the weights have no plane convolutions, or are inflated already
    """
    if any(f"{THROUGH}." in name for name in weights):
        raise ValueError("the weights have through-plane layers already: load them as they are")
    planes = [name for name in weights if name.endswith(PLANE)]
    if not planes:
        raise ValueError(
            "expected weights of a pseudo-3D network with through_plane=False, found no "
            f"'{PLANE}' among {len(weights)} names"
        )
    inflated = dict(weights)
    for name in planes:
        weight = weights[name]
        if weight.shape[-2:] == (1, 1):
            continue
        channels = weight.shape[0]
        identity = torch.zeros(channels, channels, kernel, 1, 1, dtype=weight.dtype)
        stem = name.removesuffix(PLANE) + THROUGH
        inflated[f"{stem}.weight"] = nn.init.dirac_(identity).to(weight.device)
        inflated[f"{stem}.bias"] = torch.zeros_like(weight[:, 0, 0, 0, 0])
    return inflated
