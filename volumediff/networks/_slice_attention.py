r"""Attention of Medical Diffusion's network, within slices along w and through them.

Every one is added to its input, x + W A(N(x)), where N normalises each voxel over its channels.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from volumediff.networks._block import Recomputable
from volumediff.networks._layers import Linear, whole

__all__ = ["LinearSliceAttention", "SliceAttention", "ThroughAttention"]

EPS = 1e-5
SLOWEST = 10_000.0  # base of the rotations' frequencies


class ChannelNorm(nn.Module):
    """Normalisation of each voxel over its channels, (b, ..., c), with a scale and no shift."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Float[Tensor, "b *n c"]) -> Float[Tensor, "b *n c"]:
        return F.layer_norm(x, self.weight.shape, self.weight.to(x.dtype), None, EPS)


class LinearSliceAttention(Recomputable):
    r"""Attention within each slice whose cost grows with its voxels, not with their square,

    .. math:: y = \mathrm{softmax}_c(q)\,\big(\mathrm{softmax}_n(k)^T v\big) / \sqrt{n_c}.

    Arguments:
        channels: number of channels
        heads, head_size: of the attention

    References:
        Shen et al. (2021), Efficient Attention: Attention with Linear Complexities,
        arXiv:1812.01243
    """

    halo = (0, 0, 0)
    global_axes = "dhw"

    def __init__(self, channels: int, *, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, head_size**-0.5
        self.norm = ChannelNorm(channels)
        self.qkv = Linear(channels, 3 * heads * head_size, bias=False)
        self.out = Linear(heads * head_size, channels)

    @whole
    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        b, c, d, h, w = x.shape
        # one slice is one row of tokens: (b, w, d h, c)
        tokens = self.norm(x.movedim(1, -1)).permute(0, 3, 1, 2, 4).reshape(b, w, d * h, c)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).unbind(3)
        q, k = q.softmax(dim=-1) * self.scale, k.softmax(dim=2)
        context = torch.einsum("bwnhi,bwnhj->bwhij", k, v)
        y = torch.einsum("bwhij,bwnhi->bwnhj", context, q)
        y = self.out(y.flatten(3)).view(b, w, d, h, c)
        return x + y.permute(0, 4, 2, 3, 1)


class SliceAttention(Recomputable):
    """Attention of all voxels of a slice to each other.

    Arguments:
        channels: number of channels
        heads, head_size: of the attention
    """

    halo = (0, 0, 0)
    global_axes = "dhw"

    def __init__(self, channels: int, *, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = ChannelNorm(channels)
        self.qkv = Linear(channels, 3 * heads * head_size, bias=False)
        self.out = Linear(heads * head_size, channels, bias=False)

    @whole
    def forward(self, x: Float[Tensor, "b c d h w"]) -> Float[Tensor, "b c d h w"]:
        b, c, d, h, w = x.shape
        tokens = self.norm(x.movedim(1, -1)).permute(0, 3, 1, 2, 4).reshape(b * w, d * h, c)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(y).view(b, w, d, h, c).permute(0, 4, 2, 3, 1)


class ThroughAttention(Recomputable):
    r"""Attention of a voxel to those at the same place of all slices,

    .. math:: \mathrm{softmax}\big((R_i q_i)^T R_j k_j / \sqrt n + b_{j - i}\big)\, v_j,

    with rotations R_i by angles that grow with the slice i.

    Arguments:
        channels: number of channels
        heads, head_size: of the attention

    References:
        Su et al. (2021), RoFormer, arXiv:2104.09864, section 3.2
    """

    halo = (0, 0, 0)
    # Slices lie along w: a plane of d holds all of them.
    global_axes = "hw"

    def __init__(self, channels: int, *, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads, self.rotated = heads, min(32, head_size)
        self.norm = ChannelNorm(channels)
        self.qkv = Linear(channels, 3 * heads * head_size, bias=False)
        self.out = Linear(heads * head_size, channels, bias=False)

    @whole
    def forward(
        self, x: Float[Tensor, "b c d h w"], bias: Float[Tensor, "heads w w"]
    ) -> Float[Tensor, "b c d h w"]:
        b, c, d, h, w = x.shape
        tokens = self.norm(x.movedim(1, -1)).reshape(b * d * h, w, c)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, -1)).transpose(1, 3).unbind(2)
        q, k = self._turned(q), self._turned(k)
        mask = bias.to(x.dtype)[None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return x + self.out(y).view(b, d, h, w, c).movedim(-1, 1)

    def _turned(self, x: Float[Tensor, "m heads n size"]) -> Float[Tensor, "m heads n size"]:
        """Neighbouring channels as points of a plane, turned by the slice times a frequency."""
        # Angles in float32 or wider: in bfloat16 those of slice 200 would be off by one.
        dtype = torch.promote_types(x.dtype, torch.float32)
        index = torch.arange(0, self.rotated, 2, device=x.device, dtype=dtype)
        place = torch.arange(x.shape[2], device=x.device, dtype=dtype)
        angle = place[:, None] * SLOWEST ** (-index / self.rotated)
        turned, rest = x.split((self.rotated, x.shape[-1] - self.rotated), dim=-1)
        a, b = turned.unflatten(-1, (-1, 2)).unbind(-1)
        cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        pairs = torch.stack((a * cosine - b * sine, b * cosine + a * sine), dim=-1)
        return torch.cat((pairs.flatten(-2), rest), dim=-1)
