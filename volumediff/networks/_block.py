r"""The residual block, the part of a network that a memory policy may run again,

.. math:: x \mapsto S x + C_2\, a\big(N_2(C_1\, a(N_1(x)))\,(1 + s) + b\big),
          \quad a = \mathrm{SiLU}

with convolutions C, normalisations N, FiLM coefficients (s, b) and a shortcut S, 1x1x1 unless said
otherwise, where the number of channels changes.
"""

from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._layers import Conv, Linear, NormAct, NormKind, Triple

__all__ = ["Recomputable", "ResidualBlock", "place"]


class Recomputable(nn.Module):
    """A part of a network that a memory policy may run again in the backward pass.

    `level` is that of the network, 0 being the finest; see `place`.
    """

    level = 0


def place(level: int, *modules: nn.Module) -> None:
    """Says on which level of a network the recomputable parts of the modules stand."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, Recomputable):
                part.level = level


class ResidualBlock(Recomputable):
    """Two convolutions with pre-activation, conditioned by an embedding; starts as its shortcut.

    Arguments:
        in_channels, out_channels: numbers of channels
        embedding: length of the embedding vector; 0 for a block without conditioning
        mode: `film` scales and shifts the second normalisation, `additive` adds to its input
        kernel: of the convolutions, per axis
        norm, groups, least, eps: see `Norm`
        conv: the convolution, `Conv` or `PlaneConv`
        resample: `Pool` or `Nearest` before the first convolution and the shortcut, or None
        project: makes the map from the embedding to what enters, of so many numbers; None for one
            linear layer
        shortcut_kernel: of the shortcut
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        embedding: int = 0,
        mode: Literal["film", "additive"] = "film",
        kernel: Triple = (3, 3, 3),
        norm: NormKind = "group",
        groups: int = 32,
        least: int = 2,
        eps: float = 1e-5,
        conv: Callable[..., nn.Module] = Conv,
        resample: nn.Module | None = None,
        project: Callable[[int], nn.Module] | None = None,
        shortcut_kernel: Triple = (1, 1, 1),
    ) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.mode = mode
        self.act1 = NormAct(in_channels, norm=norm, groups=groups, least=least, eps=eps)
        self.resample = resample
        self.conv1 = conv(in_channels, out_channels, kernel=kernel)
        self.act2 = NormAct(out_channels, norm=norm, groups=groups, least=least, eps=eps)
        self.conv2 = conv(out_channels, out_channels, kernel=kernel, zero=True)
        self.halo = tuple(a + b for a, b in zip(self.conv1.halo, self.conv2.halo, strict=True))
        self.global_axes = self.act1.global_axes
        self.project: nn.Module | None = None
        width = 2 * out_channels if mode == "film" else out_channels
        if project is not None:
            self.project = project(width)
        elif embedding:
            # FiLM starts as the identity; an added embedding starts as in the original U-Net.
            self.project = Linear(embedding, width, zero=mode == "film")
        self.shortcut: Conv | None = None
        if in_channels != out_channels:
            self.shortcut = Conv(in_channels, out_channels, kernel=shortcut_kernel)

    def forward(
        self,
        x: Float[Tensor, "b _ d h w"],
        e: Float[Tensor, "b n"] | None = None,
        size: tuple[int, ...] | None = None,
        skip: Float[Tensor, "b _ d h w"] | None = None,
    ) -> Float[Tensor, "b o d2 h2 w2"]:
        """The block on x, or on the channels of x and then those of the skip.

        Arguments:
            size: of the output, for a block that enlarges
        """
        if skip is not None:
            # In here, so that recomputation stores the two and not their concatenation.
            x = torch.cat((x, skip), dim=1)
        h = self.act1(x)
        if self.resample is not None:
            h = self.resample(h, size)
        # In place: no operation needs the result of a convolution in its backward pass.
        h = self.conv1(h)
        film = None
        if self.project is not None:
            # a context for attention may follow in e
            film = self.project(e[:, : self.project.in_features])
            if self.mode == "additive":
                h.add_(film.to(h.dtype)[:, :, None, None, None])
                film = None
        h = self.act2(h, film)
        h = self.conv2(h)
        # Only now, so that an enlarged x is not held meanwhile.
        if self.resample is not None:
            x = self.resample(x, size)
        return h.add_(x if self.shortcut is None else self.shortcut(x))
