r"""Self-attention, then attention to the condition, as FlowLet computes them,

.. math:: u &= \mathrm{LN}(W_{in}\, \mathrm{GN}(x)), \qquad
          u' = u + W_o\, \mathrm{attention}(u) + W_c\, \hat c + b_c, \\
          y &= x + W_{out}\, u'.

The condition is a single token. All weight of a softmax over one key is on that key, so that
attention to it gives every voxel the value of the token, whatever the queries: cross-attention is
the affine map of the normalised condition c, and needs neither queries nor scores.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from volumediff.networks._attention import Backend, attend
from volumediff.networks._block import Recomputable
from volumediff.networks._layers import Linear, Norm, whole

__all__ = ["ContextAttention"]


class ContextAttention(Recomputable):
    """Attention over voxels and to a condition; starts as the identity.

    Arguments:
        channels: number of channels
        parts: lengths of the time and of the condition in the embedding, see `SplitEmbedding`; a
            condition of length 0 is left out
        heads: number of heads, a divisor of the channels
        groups: channel groups of the normalisation over voxels
        backend: which kernel computes it

    References:
        Danese et al. (2026), FlowLet, arXiv:2601.05212
    """

    halo = (0, 0, 0)
    global_axes = "dhw"
    conditioned = True
    by_planes = True

    def __init__(
        self,
        channels: int,
        parts: tuple[int, int],
        *,
        heads: int,
        groups: int,
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.parts, self.heads, self.backend = parts, heads, backend
        # Unlike the network's other normalisations this one has torch's default of eps.
        self.norm = Norm(channels, groups=groups, least=1, eps=1e-5)
        self.enter = Linear(channels, channels)
        self.tokens = Norm(channels, kind="voxel", eps=1e-6)
        self.qkv = Linear(channels, 3 * channels)
        self.out = Linear(channels, channels)
        self.context = Linear(parts[1], channels) if parts[1] else None
        self.leave = Linear(channels, channels, zero=True)

    @whole
    def forward(
        self,
        x: Float[Tensor, "b c d h w"],
        e: Float[Tensor, "b n"],
        *,
        planes: tuple[int, int] | None = None,
    ) -> Float[Tensor, "b c d2 h w"]:
        """What voxels see of all others and of the embedding.

        Arguments:
            planes: first and end of those that ask; None for all
        """
        d = x.shape[2]
        lo, hi = planes or (0, d)
        u = self.enter(self.norm(x).movedim(1, -1)).movedim(-1, 1)
        u = self.tokens(u).movedim(1, -1).flatten(1, 3)
        q, k, v = self.qkv(u).unflatten(-1, (3, self.heads, -1)).unbind(2)
        u, q = (t.unflatten(1, (d, -1))[:, lo:hi].flatten(1, 2) for t in (u, q))
        x = x[:, :, lo:hi]
        u = u + self.out(attend(q, k, v, backend=self.backend).flatten(2))
        if self.context is not None:
            told = e.split(self.parts, dim=1)[1]
            told = F.layer_norm(told, told.shape[1:], eps=self.tokens.eps)
            u = u + self.context(told)[:, None].to(u.dtype)
        return x + self.leave(u).unflatten(1, x.shape[2:]).movedim(-1, 1)
