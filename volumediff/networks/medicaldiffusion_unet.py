r"""U-Net of slices that computes what Medical Diffusion's network computes.

Convolutions and a linear attention stay within a slice, and attention through the slices joins
them; voxels there know how many slices lie between them, by a rotation of queries and keys and by
a learned bias. Slices lie along the last axis, w, as axial slices do here. For new runs
`pseudo3d` is the lighter architecture.
"""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._base import Anatomy, Network
from volumediff.networks._block import Recomputable, place
from volumediff.networks._edges import conv_transposed
from volumediff.networks._embedding import StepEmbedding
from volumediff.networks._layers import Conv, Linear, NormAct, conv
from volumediff.networks._levels import Tap
from volumediff.networks._side_heads import SideHeads
from volumediff.networks._slice_attention import (
    LinearSliceAttention,
    SliceAttention,
    ThroughAttention,
)

__all__ = ["MedicalDiffusionUNet"]

IN_SLICE, POINT = (3, 3, 1), (1, 1, 1)
# Of the convolutions that halve and double slices.
HALVE = {"stride": (2, 2, 1), "padding": (1, 1, 0)}
SIZE = (4, 4, 1)


class MedicalDiffusionUNet(Network):
    """U-Net with concatenated skips, of which the last is that of the first convolution.

    Arguments:
        in_channels, out_channels, image_channels, classes, scalars: see `Network`; published
            networks have no classes and no scalars
        width: channels of the first convolution
        multiples: channels per level as multiples of the width, finest first
        groups: channel groups of the group normalisation
        heads: of every attention
        head_size: channels of a head
        steps: T, number of discrete steps k = 0..T-1 that the network was trained with
        coordinates: whether the position in the full volume is an input
        conditioner: `concat`, the one that this network takes

    References:
        Khader et al. (2022), Medical Diffusion, arXiv:2211.03364; Ho et al. (2022), Video
        Diffusion Models, arXiv:2204.03458
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        image_channels: int = 0,
        classes: int = 0,
        scalars: int = 0,
        width: int = 32,
        multiples: tuple[int, ...] = (1, 2, 4, 8),
        groups: int = 8,
        heads: int = 8,
        head_size: int = 32,
        steps: int = 300,
        coordinates: bool = False,
        conditioner: str | dict[str, Any] = "concat",
    ) -> None:
        widths = [width * m for m in multiples]
        if not widths:
            raise ValueError("expected at least one level, got no multiples of the width")
        if min(widths) < 1 or width < 4 or width % 2:
            raise ValueError(
                f"expected an even width from 4 on and positive multiples, got {width} and "
                f"{tuple(multiples)}"
            )
        if groups < 1 or any(n % groups for n in (width, *widths)):
            raise ValueError(f"groups must divide all widths {tuple(widths)}, got {groups}")
        if head_size < 2 or head_size % 2 or heads < 1:
            raise ValueError(f"expected heads of an even size, got {heads} of {head_size}")
        super().__init__(
            in_channels,
            out_channels,
            image_channels=image_channels,
            coordinates=coordinates,
            embedding=StepEmbedding(width, classes=classes, scalars=scalars, steps=steps),
            conditioner=conditioner,
        )
        named = {"embedding": self.embedding.width, "groups": groups}
        attention = {"heads": heads, "head_size": head_size}
        self.widths = tuple(widths)
        self.ends = (width, *widths[:-1])  # of the decoder's levels
        self.stem = Conv(self.input_channels, width, kernel=(7, 7, 1))
        self.positions = SliceDistances(heads)
        self.first = ThroughAttention(width, **attention)
        outer = [width, *widths]
        self.encoder = nn.ModuleList(
            SliceStage(a, b, **named, **attention) for a, b in pairwise(outer)
        )
        self.down = nn.ModuleList(SliceDown(n) for n in widths[:-1])
        self.middle = nn.ModuleList(PostBlock(widths[-1], widths[-1], **named) for _ in range(2))
        self.within = SliceAttention(widths[-1], **attention)
        self.through = ThroughAttention(widths[-1], **attention)
        self.decoder = nn.ModuleList(
            SliceStage(2 * b, a, **named, **attention) for a, b in pairwise(outer)
        )
        self.up = nn.ModuleList(SliceUp(n) for n in widths[:-1])
        self.last = PostBlock(2 * width, width, groups=groups)
        self.head = Conv(width, out_channels, kernel=POINT, zero=True)
        self.sides: SideHeads | None = None
        for level in range(len(widths)):
            place(level, self.encoder[level], self.decoder[level])
        place(len(widths) - 1, self.middle, self.within, self.through)

    @property
    def stride(self) -> tuple[int, int, int]:
        factor = 2 ** len(self.down)
        return factor, factor, 1

    @property
    def taps(self) -> Mapping[str, Tap]:
        found = {f"encoder.{i}": Tap(s, self.widths[i]) for i, s in enumerate(self.encoder)}
        found["middle"] = Tap(self.middle[-1], self.widths[-1])
        for i in reversed(range(len(self.decoder))):
            found[f"decoder.{i}"] = Tap(self.decoder[i], self.ends[i])
        return found

    @property
    def anatomy(self) -> Anatomy:
        descent = (self.embedding, self.stem, self.positions, self.first, self.encoder, self.down)
        descent = (*descent, self.middle, self.within, self.through)
        return Anatomy(self.stem, descent, (self.last, self.head), self.widths[-1], (2, 2, 1))

    def deepen(self, count: int) -> None:
        self.sides = SideHeads(self.ends, self.out_channels, count=count, factor=(2, 2, 1))

    def deepest(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b c d2 h2 w"]:
        return self._descend(x, e)[0]

    def body(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b o d h w"]:
        h, skips, bias = self._descend(x, e)
        sides = []
        for level in reversed(range(len(self.decoder))):
            h = self.decoder[level](h, e, bias, skips.pop())
            if self.sides is not None:
                sides += self.sides.read(level, h)
            if level:
                h = self.up[level - 1](h, skips[-1].shape[2:])
        y = self.head(self.last(h, None, skips.pop()))
        return y if self.sides is None else self.sides.beside(y, sides)

    def _descend(
        self, x: Float[Tensor, "b i d h w"], e: Float[Tensor, "b n"]
    ) -> tuple[Float[Tensor, "b c d2 h2 w"], list[Tensor], Float[Tensor, "heads w w"]]:
        """The deepest features, the skips, and the bias of the distances between slices."""
        h = self.stem(x)
        skips, bias = [h], self.positions(h.shape[4])
        h = self.first(h, bias)
        for level, stage in enumerate(self.encoder):
            h = stage(h, e, bias)
            skips.append(h)
            h = self.down[level](h) if level < len(self.down) else h
        h = self.within(self.middle[0](h, e))
        return self.middle[1](self.through(h, bias), e), skips, bias


class SliceDistances(nn.Module):
    """A learned bias of attention by the signed number of slices between two voxels.

    Distances up to 7 have a number each, further ones share by their logarithm, up to 32 slices.

    References:
        Raffel et al. (2020), T5, arXiv:1910.10683, section 2.1
    """

    buckets, exact, furthest = 16, 8, 32  # on either side

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.table = nn.Embedding(2 * self.buckets, heads)

    def forward(self, slices: int) -> Float[Tensor, "heads n n"]:
        index = torch.arange(slices, device=self.table.weight.device)
        ahead = index[None] - index[:, None]
        away = ahead.abs()
        # In float32 and in this order: a distance on a bound may fall to either side of it.
        ratio = torch.log(away.clamp(min=1).float() / self.exact)
        share = ratio / math.log(self.furthest / self.exact)
        far = self.exact + (share * (self.buckets - self.exact)).long()
        bucket = torch.where(away < self.exact, away, far.clamp(max=self.buckets - 1))
        return self.table.weight[bucket + self.buckets * (ahead > 0)].movedim(2, 0)


class PostBlock(Recomputable):
    """Two convolutions, each followed by normalisation and activation, and a shortcut.

    Arguments:
        in_channels, out_channels: numbers of channels
        groups: channel groups of the group normalisation
        embedding: length of the vector that scales and shifts the first; 0 for none
    """

    halo = (2, 2, 0)
    global_axes = "dhw"

    def __init__(
        self, in_channels: int, out_channels: int, *, groups: int, embedding: int = 0
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.conv1 = Conv(in_channels, out_channels, kernel=IN_SLICE)
        self.act1 = NormAct(out_channels, groups=groups, least=1)
        self.conv2 = Conv(out_channels, out_channels, kernel=IN_SLICE)
        self.act2 = NormAct(out_channels, groups=groups, least=1)
        self.project = Linear(embedding, 2 * out_channels) if embedding else None
        self.shortcut: Conv | None = None
        if in_channels != out_channels:
            self.shortcut = Conv(in_channels, out_channels, kernel=POINT)

    def forward(
        self,
        x: Float[Tensor, "b _ d h w"],
        e: Float[Tensor, "b n"] | None,
        skip: Float[Tensor, "b _ d h w"] | None = None,
    ) -> Float[Tensor, "b o d h w"]:
        """The block on x, or on the channels of x and then those of the skip."""
        if skip is not None:
            x = torch.cat((x, skip), dim=1)
        h = self.act1(self.conv1(x), None if self.project is None else self.project(e))
        h = self.act2(self.conv2(h))
        return h + (x if self.shortcut is None else self.shortcut(x))


class SliceStage(nn.Module):
    """Two blocks, attention within slices and attention through them."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding: int,
        groups: int,
        heads: int,
        head_size: int,
    ) -> None:
        super().__init__()
        named = {"embedding": embedding, "groups": groups}
        self.block1 = PostBlock(in_channels, out_channels, **named)
        self.block2 = PostBlock(out_channels, out_channels, **named)
        self.within = LinearSliceAttention(out_channels, heads=heads, head_size=head_size)
        self.through = ThroughAttention(out_channels, heads=heads, head_size=head_size)

    def forward(
        self,
        x: Float[Tensor, "b _ d h w"],
        e: Float[Tensor, "b n"],
        bias: Float[Tensor, "heads w w"],
        skip: Float[Tensor, "b _ d h w"] | None = None,
    ) -> Float[Tensor, "b o d h w"]:
        h = self.block2(self.block1(x, e, skip), e)
        return self.through(self.within(h), bias)


class SliceDown(nn.Module):
    """Convolution that halves slices: ceil(size / 2), an odd axis after a row of zeros."""

    halo = (2, 2, 0)
    global_axes = ""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, *SIZE))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d2 h2 w"]:
        d, h = x.shape[2:4]
        x = F.pad(x, (0, 0, 0, h % 2, 0, d % 2)) if d % 2 or h % 2 else x
        return conv(x, self.weight, self.bias, **HALVE)


class SliceUp(nn.Module):
    """Transposed convolution that doubles slices, cropped to a given size."""

    halo = (1, 1, 0)
    global_axes = ""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, *SIZE))
        self.bias = nn.Parameter(torch.zeros(channels))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))

    def forward(
        self, x: Float[Tensor, "b c d h w"], size: tuple[int, ...]
    ) -> Float[Tensor, "b c d2 h2 w"]:
        y = conv_transposed(x, self.weight, self.bias, **HALVE)
        return y[:, :, : size[0], : size[1], : size[2]]
