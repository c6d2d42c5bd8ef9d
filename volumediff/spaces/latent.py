r"""Latent space: z is the code of a frozen autoencoder, A(x) = E(x), A^{-1} = D.

Latents are normalised per channel, unless they are bits, and nothing is ever clipped. The map is
not exact: D(E(x)) is the autoencoder's reconstruction, so localization subtracts its error and
stitches in voxel space.

Where masks are diffused and images are the condition, each has a codec of its own: masks have an
autoencoder that was trained on masks, images another one, or an encoder that is trained with the
network. Both end on the same grid.

Noise. A field on the volume becomes latent noise by orthonormal rows on each cell of
s_0 x s_1 x s_2 voxels that one latent voxel stands for: the k lowest frequencies of the cell's
orthonormal cosine transform (DCT-II). White fields give white noise, a latent voxel's noise
depends on its own cell only, and the first c rows are the cell means times sqrt(s_0 s_1 s_2), so
that coarse noise stays coarse.
"""

import math
from itertools import product

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff import tiling
from volumediff.autoencoders._base import Autoencoder
from volumediff.image_codecs._base import ImageCodec
from volumediff.shapes import Shape
from volumediff.spaces._base import StateSpace

__all__ = ["Latent"]


class Latent(StateSpace):
    """The latents of a trained autoencoder, which stays frozen.

    Arguments:
        autoencoder: a trained autoencoder; in a configuration, the folder of its run
        reach: latent voxels by which a mask grows around its own cells. Formally a latent depends
            on the encoder's whole receptive field (and, through group normalization, weakly on
            everything); with random weights one voxel holds half of a change's energy, two hold
            94 % or more, three 99 %
        digest: hash of the autoencoder's weights, kept for the run's record
        image: codec of image conditions; in a configuration, the folder of an autoencoder's run,
            or one of the family image_codec. None takes the autoencoder itself

    References:
        Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion Models,
        arXiv:2112.10752
        Lin et al. (2024), Stable Diffusion Segmentation for Biomedical Images with Single-Step
        Reverse Process (SDSeg), arXiv:2406.18361, for the codec of the condition
    """

    exact = False

    def __init__(
        self,
        autoencoder: Autoencoder,
        reach: int = 2,
        digest: str = "",
        image: ImageCodec | None = None,
    ) -> None:
        super().__init__()
        cell = autoencoder.channels * math.prod(autoencoder.stride)
        if autoencoder.latent_channels > cell:
            raise ValueError(
                f"the latent has {autoencoder.latent_channels} channels for {cell} values of its "
                f"cell; use at most {cell} latent channels or a larger stride."
            )
        if reach < 1:
            raise ValueError(f"reach must be at least 1 latent voxel, got {reach}.")
        self.autoencoder = autoencoder.eval().requires_grad_(False)
        # Slices of a planar autoencoder do not see each other.
        self.reach: Shape = (0 if autoencoder.planar else reach, reach, reach)
        if image is not None:
            _on_one_grid(autoencoder, image)
        self.image = image
        self.digest = digest
        self.binary = autoencoder.binary

    @property
    def stride(self) -> Shape:
        return self.autoencoder.stride

    @property
    def image_codec(self) -> ImageCodec | None:
        return self.image

    def channels(self, c: int) -> int:
        if c != self.autoencoder.channels:
            raise ValueError(
                f"the autoencoder was trained on {self.autoencoder.channels} channels, got {c}; "
                "use the channels of its run."
            )
        return self.autoencoder.latent_channels

    def analysis(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        with torch.no_grad():
            return self.autoencoder.encode(x)

    def synthesis(
        self, raw: Float[Tensor, "b k d2 h2 w2"], shape: Shape | None = None
    ) -> Float[Tensor, "b c d h w"]:
        x = self.autoencoder.decode(raw)
        return x if shape is None else tiling.crop(x, shape)

    def noise(self, field: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b k d2 h2 w2"]:
        self._check_field(field)
        b, c, d, h, w = field.shape
        s0, s1, s2 = self.stride
        cells = field.reshape(b, c, d // s0, s0, h // s1, s1, w // s2, s2)
        rows = _cosine_rows(self.autoencoder.latent_channels, c, self.stride).to(field)
        return torch.einsum("kcxyz,bcdxhywz->bkdhw", rows, cells)

    def mask(self, m: Float[Tensor, "b 1 d h w"]) -> Float[Tensor, "b 1 d2 h2 w2"]:
        m = tiling.pad(m, self.padded(m.shape[2:]))
        m = F.max_pool3d(m, self.stride)
        width = tuple(2 * r + 1 for r in self.reach)
        return F.max_pool3d(m, width, stride=1, padding=self.reach)


def _on_one_grid(states: Autoencoder, image: ImageCodec) -> None:
    """Raises ValueError for codecs whose grids differ."""
    if image.stride != states.stride:
        raise ValueError(
            f"image: expected the stride {list(states.stride)} of the states' autoencoder, got "
            f"{list(image.stride)}; use an autoencoder of images with the same strides, or the "
            "trained encoder strided."
        )
    if image.planar != states.planar:
        words = ["a codec that sees across slices", "one that codes slices apart (planar)"]
        expected, got = words[states.planar], words[image.planar]
        raise ValueError(
            f"image: expected {expected}, as the states' autoencoder does, got {got}; use an "
            "autoencoder of images of the same kind, or the trained encoder strided."
        )


def _cosine_rows(k: int, c: int, cell: Shape) -> Float[Tensor, "k c s0 s1 s2"]:
    """k orthonormal rows on the values of a cell, by rising frequency, channel by channel."""
    bases = [_cosines(n) for n in cell]
    order = sorted(
        product(*(range(n) for n in cell)),
        key=lambda f: (sum((i / n) ** 2 for i, n in zip(f, cell, strict=True)), f),
    )
    rows = torch.zeros((k, c, *cell), dtype=torch.float64, device="cpu")
    for row in range(k):
        factors = [basis[i] for basis, i in zip(bases, order[row // c], strict=True)]
        rows[row, row % c] = torch.einsum("x,y,z->xyz", *factors)
    return rows


def _cosines(n: int) -> Float[Tensor, "n n"]:
    """The orthonormal DCT-II matrix, frequencies along the first axis."""
    place = torch.arange(n, dtype=torch.float64, device="cpu")
    rows = torch.cos(torch.pi / n * place[:, None] * (place + 0.5)) * (2 / n) ** 0.5
    rows[0] *= 0.5**0.5
    return rows
