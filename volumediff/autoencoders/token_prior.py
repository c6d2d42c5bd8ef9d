r"""Autoregressive prior of the codes of a vector-quantised autoencoder, in raster order,

.. math:: -\log p(s) = \sum_i -\log p(s_i | s_1, \dots, s_{i-1}),

so that every code has a likelihood given those before it. A code that is unlikely in healthy
volumes can be drawn again, given what became of the ones before.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from volumediff import tiling
from volumediff.autoencoders._base import (
    Autoencoder,
    Generators,
    Reconstructor,
    check_player,
    sources,
)
from volumediff.autoencoders.vq import VQ
from volumediff.config import name_of
from volumediff.extras import optional
from volumediff.shapes import Shape

__all__ = ["TokenPrior"]


class TokenPrior(Reconstructor):
    """Transformer on the codes of a frozen autoencoder; attention is over all codes before.

    Arguments:
        channels: channels c of the volumes
        autoencoder: a trained `vq`; in a configuration, the folder of its run
        shape: sizes of the volumes; smaller ones are padded
        width: of the transformer
        layers: its blocks
        heads: of the attention, a divisor of the width

    References:
        Pinaya et al. (2022), Unsupervised brain imaging 3D anomaly detection and segmentation with
        transformers, arXiv:2102.11650: 22 layers, 8 heads and 256 channels on 3D codes
    """

    def __init__(
        self,
        channels: int,
        *,
        autoencoder: Autoencoder,
        shape: tuple[int, int, int],
        width: int = 128,
        layers: int = 4,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if not isinstance(autoencoder, VQ):
            kind = name_of(type(autoencoder))
            raise ValueError(f"autoencoder: expected a run of vq, which has codes, got {kind}.")
        if width % heads:
            raise ValueError(f"expected heads to divide width, got {heads} and {width}.")
        nets = optional("monai.networks.nets", purpose="autoencoder token_prior")
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        self.channels, self.stride = channels, autoencoder.stride
        self.shape = tiling.padded_shape(shape, autoencoder.stride)
        d, h, w = (n // s for n, s in zip(self.shape, autoencoder.stride, strict=True))
        self.grid: Shape = (d, h, w)
        self.codes = autoencoder.codec["codebook"].vectors.shape[0]
        # One more token: what stands before the first code.
        self.transformer = nets.DecoderOnlyTransformer(
            num_tokens=self.codes + 1,
            max_seq_len=math.prod(self.grid),
            attn_layers_dim=width,
            attn_layers_depth=layers,
            attn_layers_heads=heads,
        )
        for name, parameter in self.transformer.named_parameters():
            # MONAI's blocks have a norm for a context, which there is none of here.
            parameter.requires_grad_("cross_attn" not in name)

    @property
    def players(self) -> dict[str, nn.Module]:
        """The transformer."""
        return {"prior": self.transformer}

    @property
    def passes(self) -> tuple[nn.Module, ...]:
        """Those of the autoencoder."""
        return self.autoencoder.passes

    def reconstruct(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        """What the autoencoder alone makes of the volume."""
        return self.autoencoder.reconstruct(x)

    def loss(
        self, player: str, x: Float[Tensor, "b c d h w"], *, generator: Generators
    ) -> dict[str, Tensor]:
        """The mean of -log p over codes."""
        check_player(self, player)
        return {"loss": self.surprise(self.tokens(x)).mean()}

    @torch.no_grad()
    def tokens(self, x: Float[Tensor, "b c d h w"]) -> Int[Tensor, "b n"]:
        """The codes of volumes in raster order.

        Raises:
            ValueError: a volume is larger than what the prior knows
        """
        if any(n > m for n, m in zip(x.shape[2:], self.shape, strict=True)):
            raise ValueError(
                f"expected volumes of at most {self.shape} voxels, got {tuple(x.shape[2:])}."
            )
        z = self.autoencoder.encode(tiling.pad(x, self.shape))
        _, index = self.autoencoder.codec["codebook"](z)
        return index.view(len(x), -1)

    def surprise(self, tokens: Int[Tensor, "b n"]) -> Float[Tensor, "b n"]:
        """-log p of each code given those before it."""
        log_p = self._logits(tokens).log_softmax(-1)
        return -log_p.gather(-1, tokens[..., None]).squeeze(-1)

    @torch.no_grad()
    def redraw(
        self,
        tokens: Int[Tensor, "b n"],
        where: Bool[Tensor, "b n"],
        *,
        generator: Generators,
    ) -> Int[Tensor, "b n"]:
        """The codes with those of the mask drawn again, first to last, each given all before."""
        result = tokens.clone()
        for row, wanted, source in zip(
            result, where, sources(generator, len(tokens)), strict=True
        ):
            for i in wanted.nonzero().flatten().tolist():
                logits = self._logits(row[None, : i + 1])[0, -1]
                p = logits.softmax(-1).to(source.device)
                row[i] = torch.multinomial(p, 1, generator=source)[0]
        return result

    def volume(self, tokens: Int[Tensor, "b n"], shape: Shape) -> Float[Tensor, "b c d h w"]:
        """The volumes of codes, of the given size."""
        codes = self.autoencoder.codec["codebook"].vectors
        z = F.embedding(tokens, codes).view(len(tokens), *self.grid, -1).movedim(-1, 1)
        return self.autoencoder.decode(z, shape)

    def on_grid(self, values: Float[Tensor, "b n"], shape: Shape) -> Float[Tensor, "b 1 d h w"]:
        """Values of the codes at the voxels that they stand for."""
        cells = values.view(len(values), 1, *self.grid)
        for axis, s in enumerate(self.stride):
            cells = cells.repeat_interleave(s, dim=2 + axis)
        return tiling.crop(cells, shape)

    def _logits(self, tokens: Tensor) -> Tensor:
        """Of every code, given those before it; what stands before the first is no code."""
        before = torch.full_like(tokens[:, :1], self.codes)
        logits = self.transformer(torch.cat([before, tokens[:, :-1]], dim=1))
        return logits[..., : self.codes]
