"""The published U-Nets written from their state dicts alone, in float64: an oracle for importers.

Nothing here knows our layers. `published` makes a state dict by the names and shapes that the
published code gives its tensors; `forward` computes the network of such a state dict. Steps are
counted as there, k = 0..999.
"""

import math
import random

import torch
import torch.nn.functional as F

__all__ = ["forward", "haar", "inverse_haar", "published"]


def published(*, inputs, outputs, widths, blocks=2, pooled, joined=False, seed=0, std=0.15):
    """A random state dict, zero nowhere; `pooled` resamples within residual blocks, `joined`
    concatenates the skips."""
    generator = torch.Generator().manual_seed(seed)
    state = {}

    def tensor(name, *shape, mean=0.0):
        state[name] = mean + std * torch.randn(shape, generator=generator)

    def affine(name, *shape):
        tensor(f"{name}.weight", *shape)
        tensor(f"{name}.bias", shape[0])

    def norm(name, width):
        tensor(f"{name}.weight", width, mean=1.0)
        tensor(f"{name}.bias", width)

    def block(name, inner, outer):
        norm(f"{name}.in_layers.0", inner)
        affine(f"{name}.in_layers.2", outer, inner, 3, 3, 3)
        affine(f"{name}.emb_layers.1", outer, 4 * widths[0])
        norm(f"{name}.out_layers.0", outer)
        affine(f"{name}.out_layers.3", outer, outer, 3, 3, 3)
        if inner != outer:
            affine(f"{name}.skip_connection", outer, inner, 1, 1, 1)

    def resampling(name, kind, width):
        if pooled:
            block(name, width, width)
        else:
            affine(f"{name}.{kind}", width, width, 3, 3, 3)

    affine("time_embed.0", 4 * widths[0], widths[0])
    affine("time_embed.2", 4 * widths[0], 4 * widths[0])
    affine("input_blocks.0.0", widths[0], inputs, 3, 3, 3)
    skips, width = [widths[0]], widths[0]
    for level, wanted in enumerate(widths):
        for _ in range(blocks):
            block(f"input_blocks.{len(skips)}.0", width, wanted)
            width = wanted
            skips.append(width)
        if level < len(widths) - 1:
            resampling(f"input_blocks.{len(skips)}.0", "op", width)
            skips.append(width)
    block("middle_block.0", width, width)
    block("middle_block.1", width, width)
    index = 0
    for level in reversed(range(len(widths))):
        for i in range(blocks + 1):
            skip = skips.pop()
            wanted = widths[level] if joined else skips[-1] if skips else widths[0]
            block(f"output_blocks.{index}.0", width + skip * joined, wanted)
            width = wanted
            if level and i == blocks:
                resampling(f"output_blocks.{index}.1", "conv", width)
            index += 1
    norm("out.0", width)
    affine("out.2", outputs, width, 3, 3, 3)
    names = list(state)
    random.Random(seed).shuffle(names)  # nobody may rely on an order
    return {name: state[name] for name in names}


def forward(state, x, k, *, groups):
    """The network at the integer step k, in float64."""
    p = {name: tensor.double() for name, tensor in state.items()}
    x = x.double()

    def norm(name, h):
        return F.group_norm(h, groups, p[f"{name}.weight"], p[f"{name}.bias"], 1e-5)

    def conv(name, h, stride=1):
        weight = p[f"{name}.weight"]
        return F.conv3d(h, weight, p[f"{name}.bias"], stride, weight.shape[-1] // 2)

    def linear(name, h):
        return F.linear(h, p[f"{name}.weight"], p[f"{name}.bias"])

    def repeat(h):
        for axis in (2, 3, 4):
            h = h.repeat_interleave(2, dim=axis)
        return h

    def mean(h):
        b, c, d, height, w = h.shape
        return h.reshape(b, c, d // 2, 2, height // 2, 2, w // 2, 2).mean((3, 5, 7))

    def block(name, h, resample=lambda h: h):
        y = resample(F.silu(norm(f"{name}.in_layers.0", h)))
        y = conv(f"{name}.in_layers.2", y)
        y = y + linear(f"{name}.emb_layers.1", F.silu(e))[:, :, None, None, None]
        y = conv(f"{name}.out_layers.3", F.silu(norm(f"{name}.out_layers.0", y)))
        h = resample(h)
        if f"{name}.skip_connection.weight" in p:
            h = conv(f"{name}.skip_connection", h)
        return h + y

    features = p["time_embed.0.weight"].shape[1]
    half = features // 2
    angles = [k * math.exp(-math.log(10000) * i / half) for i in range(half)]
    values = [math.cos(a) for a in angles] + [math.sin(a) for a in angles] + [0.0] * (features % 2)
    e = torch.tensor([values], dtype=torch.float64)
    e = linear("time_embed.2", F.silu(linear("time_embed.0", e)))

    ups = [n.split(".")[1] for n in p if n.startswith("output_blocks.") and n.split(".")[2] == "1"]
    per_level = 1 + min(int(i) for i in ups)  # decoder blocks; the encoder has one fewer
    h = conv("input_blocks.0.0", x)
    skips = [h]
    while any(n.startswith(f"input_blocks.{len(skips)}.") for n in p):
        name = f"input_blocks.{len(skips)}.0"
        if f"{name}.op.weight" in p:
            h = conv(f"{name}.op", h, stride=2)
        else:
            h = block(name, h, mean) if len(skips) % per_level == 0 else block(name, h)
        skips.append(h)
    h = block("middle_block.1", block("middle_block.0", h))
    for index in range(len(skips)):
        skip, taken = skips.pop(), len(p[f"output_blocks.{index}.0.in_layers.0.weight"])
        h = torch.cat([h, skip], dim=1) if taken > h.shape[1] else (h + skip) / 2
        h = block(f"output_blocks.{index}.0", h)
        name = f"output_blocks.{index}.1"
        if f"{name}.conv.weight" in p:
            h = conv(f"{name}.conv", repeat(h))
        elif f"{name}.in_layers.0.weight" in p:
            h = block(name, h, repeat)
    return conv("out.2", F.silu(norm("out.0", h)))


def filters(n):
    """The published matrices of the low and the high pass along an axis of n voxels."""
    low, high = torch.zeros(n // 2, n, dtype=torch.float64), torch.zeros(n // 2, n).double()
    for i in range(n // 2):
        low[i, 2 * i : 2 * i + 2] = math.sqrt(0.5)
        high[i, 2 * i], high[i, 2 * i + 1] = math.sqrt(0.5), -math.sqrt(0.5)
    return low, high


def haar(x):
    """(LLL / 3, LLH, LHL, LHH, HLL, HLH, HHL, HHH) of (1, 1, d, h, w); letters for d, h, w."""
    bands = [
        torch.einsum("ai,bj,ck,xyijk->xyabc", a, b, c, x.double())
        for a in filters(x.shape[2])
        for b in filters(x.shape[3])
        for c in filters(x.shape[4])
    ]
    bands[0] = bands[0] / 3
    return torch.cat(bands, dim=1)


def inverse_haar(z):
    """The volume of (LLL / 3, LLH, ...)."""
    z = z.clone()
    z[:, 0] *= 3
    sizes = [2 * n for n in z.shape[2:]]
    matrices = [
        (a, b, c) for a in filters(sizes[0]) for b in filters(sizes[1]) for c in filters(sizes[2])
    ]
    return sum(
        torch.einsum("ai,bj,ck,xabc->xijk", *m, z[:, i])[:, None] for i, m in enumerate(matrices)
    )
