r"""Transformer blocks over voxels, which attend to each other and to a context,

.. math:: h \mathrel{+}= \mathrm{A}(N_1 h, N_1 h), \quad h \mathrel{+}= \mathrm{A}(N_2 h, c), \quad
          h \mathrel{+}= W_2\big(u \odot \mathrm{GELU}(g)\big), \; [u, g] = W_1 N_3 h,

between a projection of the voxels to tokens and one back, which is added to the input.

References:
    Rombach et al. (2022), High-Resolution Image Synthesis with Latent Diffusion Models, section
    3.3, arXiv:2112.10752; Shazeer (2020), GLU Variants Improve Transformer, arXiv:2002.05202
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._attention import Backend, attend
from volumediff.networks._block import Recomputable
from volumediff.networks._layers import Linear, Norm, whole

__all__ = ["SpatialTransformer", "TokenAttention"]


class TokenNorm(nn.LayerNorm):
    """Normalisation of every token over its channels, in the dtype of its input."""

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


class TokenAttention(nn.Module):
    """Attention of tokens to others: W softmax(q kᵀ / sqrt(n)) v.

    Arguments:
        channels: of the tokens that attend
        others: channels of the tokens that are attended to
        head_size: channels of a head, a divisor of `channels`
        backend: see `attend`
    """

    def __init__(self, channels: int, others: int, *, head_size: int, backend: Backend) -> None:
        super().__init__()
        self.heads = channels // head_size
        self.backend = backend
        self.q = Linear(channels, channels, bias=False)
        self.kv = Linear(others, 2 * channels, bias=False)
        self.out = Linear(channels, channels)

    def forward(
        self, x: Float[Tensor, "b n c"], others: Float[Tensor, "b m o"]
    ) -> Float[Tensor, "b n c"]:
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = self.kv(others).unflatten(-1, (2, self.heads, -1)).unbind(2)
        return self.out(attend(q, k, v, backend=self.backend).flatten(2))


class FeedForward(nn.Module):
    """Two layers with a gate between them, four times as wide as the tokens."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = Linear(channels, 8 * channels)
        self.outer = Linear(4 * channels, channels)

    def forward(self, x: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        u, gate = self.inner(x).chunk(2, dim=-1)
        return self.outer(u * F.gelu(gate))


class TransformerBlock(nn.Module):
    """Attention of tokens to each other and to a context, and a feed-forward layer."""

    def __init__(self, channels: int, context: int, *, head_size: int, backend: Backend) -> None:
        super().__init__()
        named = {"head_size": head_size, "backend": backend}
        self.norm1, self.norm2, self.norm3 = (TokenNorm(channels) for _ in range(3))
        self.to_tokens = TokenAttention(channels, channels, **named)
        self.to_context = TokenAttention(channels, context, **named)
        self.feed = FeedForward(channels)

    def forward(
        self, h: Float[Tensor, "b n c"], context: Float[Tensor, "b m o"]
    ) -> Float[Tensor, "b n c"]:
        normed = self.norm1(h)
        h = h + self.to_tokens(normed, normed)
        h = h + self.to_context(self.norm2(h), context)
        return h + self.feed(self.norm3(h))


class SpatialTransformer(Recomputable):
    """Transformer blocks on the voxels of a volume; starts as the identity.

    Arguments:
        channels: of the volume
        context: channels of the tokens of the context
        begin: where these begin in the embedding
        blocks: number of transformer blocks
        head_size: channels of an attention head, a divisor of `channels`
        groups, least, eps: of the group normalisation before the blocks, see `Norm`
        backend: which kernel computes attention
    """

    # Attention looks everywhere, whatever the statistics of its norm.
    halo = (0, 0, 0)
    global_axes = "dhw"
    conditioned = True

    def __init__(
        self,
        channels: int,
        context: int,
        *,
        begin: int,
        blocks: int,
        head_size: int,
        groups: int,
        least: int,
        eps: float,
        backend: Backend,
    ) -> None:
        super().__init__()
        self.begin, self.context = begin, context
        self.norm = Norm(channels, groups=groups, least=least, eps=eps)
        self.tokens = Linear(channels, channels)
        self.blocks = nn.ModuleList(
            TransformerBlock(channels, context, head_size=head_size, backend=backend)
            for _ in range(blocks)
        )
        self.out = Linear(channels, channels, zero=True)

    @whole
    def forward(
        self, x: Float[Tensor, "b c d h w"], e: Float[Tensor, "b n"]
    ) -> Float[Tensor, "b c d h w"]:
        h = self.tokens(self.norm(x).movedim(1, -1).flatten(1, 3))
        context = e[:, self.begin :].unflatten(1, (-1, self.context)).to(h.dtype)
        for block in self.blocks:
            h = block(h, context)
        return x + self.out(h).unflatten(1, x.shape[2:]).movedim(-1, 1)
