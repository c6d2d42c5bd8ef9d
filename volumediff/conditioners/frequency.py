r"""Image features that the state's features attend to, on every level and filtered by frequency,

.. math:: h_l + A(f_l, F_l h_l), \qquad
          A(m, u) = \big(\mathrm{LN}(m) \odot \mathrm{LN}(u)\big) \odot m,

with f the features of an image encoder, F a learned filter in Fourier space, which can keep the
high frequencies of the noise from the image, and LN over the channels of a voxel.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.conditioners._base import Body, Conditioner, Host, Place, Prepared
from volumediff.conditioners._frequency_filter import FrequencyFilter
from volumediff.conditioners._image_encoder import ImageEncoder
from volumediff.networks._layers import whole

__all__ = ["FrequencyConditioner"]


class FrequencyConditioner(Conditioner):
    """Dynamic conditional encoding with a frequency filter.

    LN(m) ⊙ m is free of time and prepared once. In the paper the image encoder goes on from A, so
    that it runs in every step; here it sees the image alone.

    Arguments:
        grid: frequencies per axis on which the filters are learned
        levels: where features attend, 0 being the finest; None for all

    References:
        Wu et al. (2022), MedSegDiff, arXiv:2211.00611, equations 3 to 5; its code adds a
        convolution that is made at random in every step, and is not part of the paper
    """

    def __init__(
        self, *, host: Host, grid: int = 16, levels: tuple[int, ...] | None = None
    ) -> None:
        super().__init__()
        body = host.layers
        chosen = _levels(body, levels)
        self.places = frozenset(chosen)
        self.encoder = ImageEncoder(body, host.image_channels, last=max(chosen))
        self.attention = nn.ModuleDict(
            {str(i): _Attentive(body.widths[i], grid=grid, plane=body.plane) for i in chosen}
        )
        self.norm = nn.ModuleDict({str(i): nn.LayerNorm(body.widths[i]) for i in chosen})

    def prepare(self, image: Float[Tensor, "b k d h w"]) -> Prepared:
        features = self.encoder(image)
        return tuple(
            features[i] * _normalised(features[i], self.norm[str(i)]) for i in sorted(self.places)
        )

    def forward(
        self,
        h: Float[Tensor, "b c d2 h2 w2"],
        place: Place,
        carried: Prepared,
        e: Float[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], Prepared]:
        return h + carried[0] * self.attention[str(place)](h), carried[1:]


class _Attentive(nn.Module):
    """LN(F h)."""

    def __init__(self, channels: int, *, grid: int, plane: bool) -> None:
        super().__init__()
        self.filter = FrequencyFilter(channels, grid=grid, plane=plane)
        self.norm = nn.LayerNorm(channels)

    @whole
    def forward(self, h: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        return _normalised(self.filter(h), self.norm)


def _normalised(x: Float[Tensor, "b c d h w"], norm: nn.LayerNorm) -> Float[Tensor, "b c d h w"]:
    """Layer norm over channels, in the dtype of x."""
    last = x.movedim(1, -1)
    weight, bias = norm.weight.to(x.dtype), norm.bias.to(x.dtype)
    return F.layer_norm(last, norm.normalized_shape, weight, bias, norm.eps).movedim(-1, 1)


def _levels(body: Body, levels: Sequence[int] | None) -> list[int]:
    chosen = sorted(set(range(body.last + 1) if levels is None else levels))
    if not chosen or not set(chosen) <= set(range(body.last + 1)):
        raise ValueError(
            f"levels: expected levels of the network, 0 (finest) to {body.last}, got "
            f"{tuple(levels or ())}."
        )
    return chosen
