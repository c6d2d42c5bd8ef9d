r"""Two branches that see each other on every level, one of the state and one of the image,

.. math:: h_l \leftarrow R_h\big(C(g_l) \odot h_l,\ e\big), \qquad
          g_l \leftarrow R_g\big([h_l, g_l],\ e'\big), \qquad g_{l+1} = D(g_l),

with residual blocks R, convolutions C and D, and an embedding e' of the time for the image's
branch. The image's branch sees the noisy state and the time from its first level on, so that it
runs in every step: only its first convolution, and the first C, are prepared once per volume.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.conditioners._base import Body, Conditioner, Host, Place, Prepared
from volumediff.conditioners._image_encoder import block_of
from volumediff.networks._block import place as put
from volumediff.networks._layers import Linear
from volumediff.networks._resample import Down
from volumediff.networks._streamable import Streamable

__all__ = ["DualConditioner"]


class DualConditioner(Conditioner):
    """Dual encoder with feedback.

    C starts as one, so that the network starts as it is without an image. The two branches meet
    in the encoder; after its last level the image's branch ends.

    Arguments:
        share: width of the image's branch, of that of the network; 1/2 in the paper

    References:
        Bozorgpour et al. (2023), DermoSegDiff, arXiv:2308.02959; there the bottleneck and the
        decoder have linear attention, and levels are gated before their blocks
    """

    def __init__(self, *, host: Host, share: float = 0.5) -> None:
        super().__init__()
        body = host.layers
        if not 0 < share <= 1:
            raise ValueError(f"share: expected a share in (0, 1], got {share}.")
        widths = [max(1, round(share * w)) for w in body.widths]
        levels = range(len(widths))
        self.places = frozenset(levels)
        self.time = Linear(host.embedding, host.embedding)
        self.first = _First(body, host.image_channels, widths[0])
        # Of the first level the gate is prepared, see `_First`.
        self.gates = nn.ModuleList(_one(body, widths[i], body.widths[i]) for i in levels if i > 0)
        self.forth = nn.ModuleList(
            block_of(body, w, w, embedding=host.embedding) for w in body.widths
        )
        self.back = nn.ModuleList(
            block_of(body, body.widths[i] + widths[i], widths[i], embedding=host.embedding)
            for i in levels[:-1]
        )
        self.down = nn.ModuleList(
            Down(widths[i], widths[i + 1], factor=body.factor, kernel=body.kernel, conv=body.conv)
            for i in levels[:-1]
        )
        for level in levels:
            put(level, self.forth[level], *self.back[level : level + 1])

    def prepare(self, image: Float[Tensor, "b k d h w"]) -> Prepared:
        g = self.first(image)
        return g, self.first.gate(g)

    def forward(
        self,
        h: Float[Tensor, "b c d2 h2 w2"],
        place: Place,
        carried: Prepared,
        e: Float[Tensor, "b n"],
    ) -> tuple[Float[Tensor, "b c d2 h2 w2"], Prepared]:
        level = int(place)
        g, *prepared = carried
        gate = prepared[0] if prepared else self.gates[level - 1](g)
        h = self.forth[level](gate * h, e)
        if level == len(self.down):
            return h, ()
        g = self.back[level](torch.cat((h, g), dim=1), F.silu(self.time(e)))
        return h, (self.down[level](g),)


class _First(Streamable):
    """The first features of the image, and the first gate."""

    def __init__(self, body: Body, in_channels: int, width: int) -> None:
        super().__init__()
        self.conv = body.conv(in_channels, width, kernel=body.kernel)
        self.gating = _one(body, width, body.widths[0])

    @property
    def whole_passes(self) -> tuple[tuple[nn.Module, str], ...]:
        return (self, "forward"), (self, "gate")

    def forward(self, image: Float[Tensor, "b k d h w"]) -> Float[Tensor, "b c d h w"]:
        return self.conv(image)

    def gate(self, g: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b o d h w"]:
        """C(g) of the first level."""
        return self.gating(g)


def _one(body: Body, in_channels: int, out_channels: int) -> nn.Module:
    """A convolution that starts as the constant one."""
    made = body.conv(in_channels, out_channels, kernel=body.kernel, zero=True)
    inner = made.in_plane if body.plane else made
    nn.init.ones_(inner.bias)
    return made
