"""Medical Diffusion's networks written from their state dicts alone, in float64: an oracle.

Arrays have the slices first, as that tool has them. Everything is spelled out with loops where the
tool and the package use fused operations: scores of attention are stored, distances to all codes
too.
"""

import itertools
import math

import torch
import torch.nn.functional as F

__all__ = ["decode", "encode", "latents", "published", "unet"]

HEADS, SIZE = 2, 8


def published(*, width=4, levels=2, codes=12, length=3, dim=8, multiples=(1, 2), steps=30):
    """A checkpoint of the diffusion model, which holds its autoencoder, with random weights."""
    generator = torch.Generator().manual_seed(0)
    state = {}

    def draw(name, *shape, scale=None):
        fan = math.prod(shape[1:]) if len(shape) > 1 else 1
        scale = scale or (0.7 * fan**-0.5 if len(shape) > 1 else 0.3)
        value = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        state[name] = value + 1 if name.endswith(("norm.weight", "gamma")) else value

    def both(name, *shape):
        draw(f"{name}.weight", *shape)
        draw(f"{name}.bias", shape[1] if name.endswith("convt") else shape[0])

    def norm(name, channels):
        draw(f"{name}.weight", channels)
        draw(f"{name}.bias", channels)

    def resnet(name, channels):
        for i in (1, 2):
            norm(f"{name}.norm{i}", channels)
            both(f"{name}.conv{i}.conv", channels, channels, 3, 3, 3)

    both("vqgan.encoder.conv_first.conv", width, 1, 3, 3, 3)
    deepest = width << levels
    for i in range(levels):
        wide, block = width << (i + 1), f"vqgan.encoder.conv_blocks.{i}"
        both(f"{block}.down.conv", wide, wide // 2, 4, 4, 4)
        resnet(f"{block}.res", wide)
        wide, block = width << (levels - i), f"vqgan.decoder.conv_blocks.{i}"
        both(f"{block}.up.convt", deepest if i == 0 else 2 * wide, wide, 4, 4, 4)
        resnet(f"{block}.res1", wide)
        resnet(f"{block}.res2", wide)
    norm("vqgan.encoder.final_block.0", deepest)
    norm("vqgan.decoder.final_block.0", deepest)
    both("vqgan.pre_vq_conv.conv", length, deepest, 1, 1, 1)
    both("vqgan.post_vq_conv.conv", deepest, length, 1, 1, 1)
    both("vqgan.decoder.conv_last.conv", 1, 2 * width, 3, 3, 3)
    draw("vqgan.codebook.embeddings", codes, length, scale=0.7)
    state["vqgan.codebook.N"] = torch.arange(codes, dtype=torch.float64)
    draw("vqgan.codebook.z_avg", codes, length)
    both("vqgan.image_discriminator.model0.0", 4, 1, 4, 4)
    both("vqgan.perceptual_model.lin0", 1, 4)

    inner = HEADS * SIZE

    def attention(name, channels, rotary=True):
        draw(f"{name}.fn.norm.gamma", 1, channels, 1, 1, 1, scale=0.3)
        draw(f"{name}.fn.fn.fn.to_qkv.weight", 3 * inner, channels)
        draw(f"{name}.fn.fn.fn.to_out.weight", channels, inner)
        if rotary:
            freqs = 1e4 ** (-torch.arange(0, SIZE, 2, dtype=torch.float64) / SIZE)
            state[f"{name}.fn.fn.fn.rotary_emb.freqs"] = freqs

    def block(name, inputs, outputs, time=True):
        for i, channels in ((1, inputs), (2, outputs)):
            both(f"{name}.block{i}.proj", outputs, channels, 1, 3, 3)
            norm(f"{name}.block{i}.norm", outputs)
        if time:
            both(f"{name}.mlp.1", 2 * outputs, 4 * dim)
        if inputs != outputs:
            both(f"{name}.res_conv", outputs, inputs, 1, 1, 1)

    def stage(name, inputs, outputs):
        block(f"{name}.0", inputs, outputs)
        block(f"{name}.1", outputs, outputs)
        draw(f"{name}.2.fn.norm.gamma", 1, outputs, 1, 1, 1, scale=0.3)
        draw(f"{name}.2.fn.fn.to_qkv.weight", 3 * inner, outputs, 1, 1)
        both(f"{name}.2.fn.fn.to_out", outputs, inner, 1, 1)
        attention(f"{name}.3", outputs)

    n = "denoise_fn."
    both(f"{n}init_conv", dim, length, 1, 7, 7)
    attention(f"{n}init_temporal_attn", dim)
    draw(f"{n}time_rel_pos_bias.relative_attention_bias.weight", 32, HEADS, scale=1.0)
    both(f"{n}time_mlp.1", 4 * dim, dim)
    both(f"{n}time_mlp.3", 4 * dim, 4 * dim)
    widths = [dim, *(dim * m for m in multiples)]
    last = len(multiples) - 1
    for i in range(last + 1):
        stage(f"{n}downs.{i}", widths[i], widths[i + 1])
        stage(f"{n}ups.{last - i}", 2 * widths[i + 1], widths[i])
        if i < last:
            both(f"{n}downs.{i}.4", widths[i + 1], widths[i + 1], 1, 4, 4)
        if i:
            both(f"{n}ups.{last - i}.4", widths[i], widths[i], 1, 4, 4)
    block(f"{n}mid_block1", widths[-1], widths[-1])
    block(f"{n}mid_block2", widths[-1], widths[-1])
    attention(f"{n}mid_spatial_attn", widths[-1], rotary=False)
    attention(f"{n}mid_temporal_attn", widths[-1])
    block(f"{n}final_conv.0", 2 * dim, dim, time=False)
    both(f"{n}final_conv.1", length, dim, 1, 1, 1)

    s = 0.008
    f = [math.cos((k / steps + s) / (1 + s) * math.pi / 2) ** 2 for k in range(steps + 1)]
    betas = [min(1 - b / a, 0.9999) for a, b in itertools.pairwise(f)]
    state["betas"] = torch.tensor(betas, dtype=torch.float64)
    state["alphas_cumprod"] = torch.cumprod(1 - state["betas"], 0)
    whole = {f"ema.{name}": value for name, value in state.items()}
    # the weights themselves beside their running average
    whole |= {f"model.{name}": value + 1 for name, value in state.items()}
    return {**whole, "step": torch.tensor(7)}


# --- the autoencoder ----------------------------------------------------------------------------


def _padded(x, kernel, stride):
    total = [k - s for k, s in zip(kernel, stride, strict=True)]
    ends = [n for t in reversed(total) for n in (t // 2 + t % 2, t // 2)]
    return F.pad(x, ends, mode="replicate")


def _conv(state, name, x, stride=(1, 1, 1)):
    weight = state[f"{name}.weight"]
    x = _padded(x, weight.shape[2:], stride)
    return F.conv3d(x, weight, state[f"{name}.bias"], stride)


def _up(state, name, x, stride):
    weight = state[f"{name}.weight"]
    x = _padded(x, weight.shape[2:], stride)
    padding = [k - 1 for k in weight.shape[2:]]
    return F.conv_transpose3d(x, weight, state[f"{name}.bias"], stride, padding)


def _act(state, name, x, groups, eps=1e-6):
    return F.silu(F.group_norm(x, groups, state[f"{name}.weight"], state[f"{name}.bias"], eps))


def _residual(state, name, x, groups):
    h = _conv(state, f"{name}.conv1.conv", _act(state, f"{name}.norm1", x, groups))
    return x + _conv(state, f"{name}.conv2.conv", _act(state, f"{name}.norm2", h, groups))


def _strides(downsample):
    """The first changes concern all axes that change at all."""
    powers = [int(math.log2(n)) for n in downsample]
    return [tuple(2 if level < n else 1 for n in powers) for level in range(max(powers))]


def encode(state, x, downsample, *, groups, p="ema.vqgan."):
    """Latents of volumes, before they are replaced by codes."""
    h = _conv(state, f"{p}encoder.conv_first.conv", x)
    for i, stride in enumerate(_strides(downsample)):
        h = _conv(state, f"{p}encoder.conv_blocks.{i}.down.conv", h, stride)
        h = _residual(state, f"{p}encoder.conv_blocks.{i}.res", h, groups)
    return _conv(
        state, f"{p}pre_vq_conv.conv", _act(state, f"{p}encoder.final_block.0", h, groups)
    )


def decode(state, z, downsample, *, groups, p="ema.vqgan."):
    """Volumes of latents, each of which is replaced by the nearest code."""
    codes = state[f"{p}codebook.embeddings"]
    rows = z.movedim(1, -1)
    index = torch.cdist(rows.flatten(0, 3), codes).argmin(1)
    h = codes[index].view(rows.shape).movedim(-1, 1)
    h = _act(state, f"{p}decoder.final_block.0", _conv(state, f"{p}post_vq_conv.conv", h), groups)
    for i, stride in enumerate(_strides(downsample)):
        h = _up(state, f"{p}decoder.conv_blocks.{i}.up.convt", h, stride)
        for k in (1, 2):
            h = _residual(state, f"{p}decoder.conv_blocks.{i}.res{k}", h, groups)
    return _conv(state, f"{p}decoder.conv_last.conv", h)


def latents(state, z, p="ema.vqgan."):
    """Latents as the diffusion model sees them."""
    codes = state[f"{p}codebook.embeddings"]
    return 2 * (z - codes.min()) / (codes.max() - codes.min()) - 1


# --- the diffusion model ------------------------------------------------------------------------


def unet(state, z, k, *, p="ema.denoise_fn."):
    """The predicted noise at the step k."""
    bias = _distances(state[f"{p}time_rel_pos_bias.relative_attention_bias.weight"], z.shape[2])
    e = _embedding(state, p, k, z.shape[0])
    h = F.conv3d(z, *_pair(state, f"{p}init_conv"), padding=(0, 3, 3))
    skips = [h]
    h = _attention(state, f"{p}init_temporal_attn", h, bias, through=True)
    levels = sum(f"{p}downs.{i}.0.block1.proj.weight" in state for i in range(9))
    for i in range(levels):
        h = _stage(state, f"{p}downs.{i}", h, e, bias)
        skips.append(h)
        if i < levels - 1:
            pair = _pair(state, f"{p}downs.{i}.4")
            h = F.conv3d(h, *pair, stride=(1, 2, 2), padding=(0, 1, 1))
    h = _block(state, f"{p}mid_block1", h, e)
    h = _attention(state, f"{p}mid_spatial_attn", h, None, through=False)
    h = _attention(state, f"{p}mid_temporal_attn", h, bias, through=True)
    h = _block(state, f"{p}mid_block2", h, e)
    for i in range(levels):
        h = _stage(state, f"{p}ups.{i}", torch.cat((h, skips.pop()), 1), e, bias)
        if i < levels - 1:
            pair = _pair(state, f"{p}ups.{i}.4")
            h = F.conv_transpose3d(h, *pair, stride=(1, 2, 2), padding=(0, 1, 1))
    h = _block(state, f"{p}final_conv.0", torch.cat((h, skips.pop()), 1), None)
    return F.conv3d(h, *_pair(state, f"{p}final_conv.1"))


def _pair(state, name):
    return state[f"{name}.weight"], state[f"{name}.bias"]


def _embedding(state, p, k, batch):
    width = state[f"{p}time_mlp.1.weight"].shape[1]
    half = width // 2
    omega = [10_000 ** (-i / (half - 1)) for i in range(half)]
    rows = [f(k * w) for f in (math.sin, math.cos) for w in omega]
    e = torch.tensor(rows, dtype=torch.float64).expand(batch, -1)
    e = F.gelu(F.linear(e, *_pair(state, f"{p}time_mlp.1")))
    return F.linear(e, *_pair(state, f"{p}time_mlp.3"))


def _distances(table, n):
    """Bias [head, i, j] by the number of slices from i to j."""
    bias = torch.zeros(table.shape[1], n, n, dtype=torch.float64)
    for i in range(n):
        for j in range(n):
            away = abs(j - i)
            bucket = away if away < 8 else min(15, 8 + int(math.log(away / 8) / math.log(4) * 8))
            bias[:, i, j] = table[bucket + (16 if j > i else 0)]
    return bias


def _block(state, name, x, e):
    h = x
    for i in (1, 2):
        h = F.conv3d(h, *_pair(state, f"{name}.block{i}.proj"), padding=(0, 1, 1))
        h = F.group_norm(h, 8, *_pair(state, f"{name}.block{i}.norm"))
        if i == 1 and e is not None:
            film = F.linear(F.silu(e), *_pair(state, f"{name}.mlp.1"))[:, :, None, None, None]
            scale, shift = film.chunk(2, 1)
            h = h * (scale + 1) + shift
        h = F.silu(h)
    if f"{name}.res_conv.weight" in state:
        x = F.conv3d(x, *_pair(state, f"{name}.res_conv"))
    return h + x


def _normed(x, gamma):
    mean, variance = x.mean(1, keepdim=True), x.var(1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + 1e-5).sqrt() * gamma


def _stage(state, name, x, e, bias):
    h = _block(state, f"{name}.1", _block(state, f"{name}.0", x, e), e)
    h = _linear_attention(state, f"{name}.2", h)
    return _attention(state, f"{name}.3", h, bias, through=True)


def _linear_attention(state, name, x):
    b, _c, d, h, w = x.shape
    normed = _normed(x, state[f"{name}.fn.norm.gamma"])
    out = torch.zeros_like(x)
    for i in range(d):
        qkv = F.conv2d(normed[:, :, i], state[f"{name}.fn.fn.to_qkv.weight"])
        q, k, v = qkv.view(b, 3, HEADS, SIZE, h * w).unbind(1)
        context = torch.einsum("bhcn,bhen->bhce", k.softmax(-1), v)
        y = torch.einsum("bhce,bhcn->bhen", context, q.softmax(-2) * SIZE**-0.5)
        out[:, :, i] = F.conv2d(y.reshape(b, -1, h, w), *_pair(state, f"{name}.fn.fn.to_out"))
    return x + out


def _attention(state, name, x, bias, *, through):
    b, c, d, h, w = x.shape
    normed = _normed(x, state[f"{name}.fn.norm.gamma"]).movedim(1, -1)
    tokens = normed.permute(0, 2, 3, 1, 4) if through else normed
    n = d if through else h * w
    tokens = tokens.reshape(-1, n, c)
    q, k, v = F.linear(tokens, state[f"{name}.fn.fn.fn.to_qkv.weight"]).chunk(3, -1)
    q, k, v = (t.reshape(-1, n, HEADS, SIZE).transpose(1, 2) for t in (q, k, v))
    if through:
        q, k = _rotated(q), _rotated(k)
    scores = q @ k.transpose(-1, -2) * SIZE**-0.5
    scores = scores + bias if through else scores
    y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(-1, n, HEADS * SIZE)
    y = F.linear(y, state[f"{name}.fn.fn.fn.to_out.weight"])
    shape = (b, h, w, d, c) if through else (b, d, h, w, c)
    y = y.view(shape).permute(0, 3, 1, 2, 4) if through else y.view(shape)
    return x + y.movedim(-1, 1)


def _rotated(x):
    """Channels 2 i and 2 i + 1 of slice n turned by the angle n 10000^(-2 i / size)."""
    y = x.clone()
    for n in range(x.shape[2]):
        for i in range(SIZE // 2):
            angle = n * 10_000 ** (-2 * i / SIZE)
            a, b = x[:, :, n, 2 * i], x[:, :, n, 2 * i + 1]
            y[:, :, n, 2 * i] = math.cos(angle) * a - math.sin(angle) * b
            y[:, :, n, 2 * i + 1] = math.sin(angle) * a + math.cos(angle) * b
    return y
