"""FlowLet's network written from its state dict alone, in float64: an oracle for its importer.

Nothing here knows our layers. `published` makes a state dict by the names and shapes that the
published code gives its tensors, `forward` computes the network of such a state dict, with its
attention to one token as attention, and `euler` its sampling. Time runs from noise to data.
"""

import math
import random

import torch
import torch.nn.functional as F

__all__ = ["euler", "forward", "published"]


def published(*, widths, attends, told=6, blocks=2, names=("Age",), seed=0, std=0.15):
    """A random state dict, zero nowhere; attention on the levels of `attends`."""
    generator = torch.Generator().manual_seed(seed)
    state, timed = {}, 4 * widths[0]

    def tensor(name, *shape, mean=0.0):
        state[name] = mean + std * torch.randn(shape, generator=generator, dtype=torch.float64)

    def affine(name, *shape):
        tensor(f"{name}.weight", *shape)
        tensor(f"{name}.bias", shape[0])

    def norm(name, width):
        tensor(f"{name}.weight", width, mean=1.0)
        tensor(f"{name}.bias", width)

    def block(name, inner, outer):
        norm(f"{name}.in_layers.0", inner)
        affine(f"{name}.in_layers.2", outer, inner, 3, 3, 3)
        affine(f"{name}.emb_layers.1", 2 * outer, timed)
        affine(f"{name}.cond_emb_layers.1", 2 * outer, told)
        norm(f"{name}.out_layers.0", outer)
        affine(f"{name}.out_layers.3", outer, outer, 3, 3, 3)
        if inner != outer:
            affine(f"{name}.skip_connection", outer, inner, 3, 3, 3)

    def attention(name, width):
        for part, n in (("norm", width), ("norm_seq", width), ("norm_context", told)):
            norm(f"{name}.{part}", n)
        for part in ("proj_in", "proj_out"):
            affine(f"{name}.{part}", width, width, 1, 1, 1)
        for part in ("to_q", "to_k", "to_v", "to_q_cross"):
            tensor(f"{name}.{part}.weight", width, width)
        tensor(f"{name}.to_kv_cross.weight", 2 * width, told)
        for part in ("proj_self_attn_out", "proj_cross_attn_out"):
            affine(f"{name}.{part}", width, width)

    affine("time_embed.0", timed, widths[0])
    affine("time_embed.2", timed, timed)
    for name in names:
        affine(f"condition_embedder.embedders.{name}.0", told, 1)
        affine(f"condition_embedder.embedders.{name}.2", told, told)
    affine("input_blocks.0.0", widths[0], 8, 3, 3, 3)
    skips, width = [widths[0]], widths[0]
    for level, wanted in enumerate(widths):
        for _ in range(blocks):
            block(f"input_blocks.{len(skips)}.0", width, wanted)
            width = wanted
            if level in attends:
                attention(f"input_blocks.{len(skips)}.1", width)
            skips.append(width)
        if level < len(widths) - 1:
            block(f"input_blocks.{len(skips)}.0", width, width)
            skips.append(width)
    block("middle_block.0", width, width)
    attention("middle_block.1", width)
    block("middle_block.2", width, width)
    index = 0
    for level in reversed(range(len(widths))):
        for i in range(blocks + 1):
            block(f"output_blocks.{index}.0", width + skips.pop(), widths[level])
            width = widths[level]
            if level in attends:
                attention(f"output_blocks.{index}.1", width)
            if level and i == blocks:
                block(f"output_blocks.{index}.{1 + (level in attends)}", width, width)
            index += 1
    norm("out.0", width)
    affine("out.2", 8, width, 3, 3, 3)
    names = list(state)
    random.Random(seed).shuffle(names)  # nobody may rely on an order
    return {name: state[name] for name in names}


def forward(state, x, t, told, *, heads, groups):
    """The velocity at the times t, given variable -> its value in [0, 1], in float64."""

    def of(name):
        return state[f"{name}.weight"], state[f"{name}.bias"]

    def normed(h, name, eps):
        return F.group_norm(h, groups, *of(name), eps)

    def mlp(h, first, second):
        return F.linear(F.silu(F.linear(h, *of(first))), *of(second))

    width = state["time_embed.0.weight"].shape[1]
    omega = 10_000.0 ** (-torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angle = t[:, None] * omega
    e = mlp(torch.cat((angle.cos(), angle.sin()), 1), "time_embed.0", "time_embed.2")
    c = 0
    for name, value in told.items():
        place = f"condition_embedder.embedders.{name}"
        c = c + mlp(value[:, None], f"{place}.0", f"{place}.2")

    def film(h, name, vector):
        s, b = F.linear(F.silu(vector), *of(name))[:, :, None, None, None].chunk(2, 1)
        return h * (1 + s) + b

    def block(h, name, resample=None):
        y = F.silu(normed(h, f"{name}.in_layers.0", 1e-6))
        if resample is not None:
            y, h = resample(y), resample(h)
        y = F.conv3d(y, *of(f"{name}.in_layers.2"), padding=1)
        y = film(normed(y, f"{name}.out_layers.0", 1e-6), f"{name}.emb_layers.1", e)
        y = F.silu(film(y, f"{name}.cond_emb_layers.1", c))
        y = F.conv3d(y, *of(f"{name}.out_layers.3"), padding=1)
        if f"{name}.skip_connection.weight" in state:
            h = F.conv3d(h, *of(f"{name}.skip_connection"), padding=1)
        return h + y

    def attend(q, k, v):
        q, k, v = (a.unflatten(-1, (heads, -1)).transpose(1, 2) for a in (q, k, v))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)

    def attention(h, name):
        u = F.conv3d(normed(h, f"{name}.norm", 1e-5), *of(f"{name}.proj_in"))
        u = u.flatten(2).transpose(1, 2)
        u = F.layer_norm(u, u.shape[2:], *of(f"{name}.norm_seq"), 1e-6)
        q, k, v = (u @ state[f"{name}.to_{part}.weight"].T for part in "qkv")
        u = u + F.linear(attend(q, k, v), *of(f"{name}.proj_self_attn_out"))
        token = F.layer_norm(c, c.shape[1:], *of(f"{name}.norm_context"), 1e-6)[:, None]
        k, v = (token @ state[f"{name}.to_kv_cross.weight"].T).chunk(2, -1)
        y = attend(u @ state[f"{name}.to_q_cross.weight"].T, k, v)
        u = u + F.linear(y, *of(f"{name}.proj_cross_attn_out"))
        return h + F.conv3d(u.transpose(1, 2).reshape(h.shape), *of(f"{name}.proj_out"))

    def layers(h, name):
        """Whatever stands in one place of the encoder or decoder."""
        for i in range(3):
            place = f"{name}.{i}"
            if f"{place}.to_q.weight" in state:
                h = attention(h, place)
            elif f"{place}.in_layers.0.weight" in state:
                h = block(h, place, double if i else halve.get(name))
        return h

    def double(h):
        return F.interpolate(h, scale_factor=2.0)

    blocks = [n for n in state if n.endswith(".in_layers.0.weight")]
    count = sum(n.startswith("input_blocks.") for n in blocks)
    ups = sum(n.startswith("output_blocks.") and ".0.in" not in n for n in blocks)
    per_level = (count - ups) // (ups + 1) + 1
    halve = {
        f"input_blocks.{i * per_level}": lambda h: F.avg_pool3d(h, 2) for i in range(1, ups + 1)
    }
    h = F.conv3d(x, *of("input_blocks.0.0"), padding=1)
    skips = [h]
    for i in range(1, count + 1):
        h = layers(h, f"input_blocks.{i}")
        skips.append(h)
    h = block(attention(block(h, "middle_block.0"), "middle_block.1"), "middle_block.2")
    for i in range(count + 1):
        h = layers(torch.cat((h, skips.pop()), 1), f"output_blocks.{i}")
    return F.conv3d(F.silu(normed(h, "out.0", 1e-6)), *of("out.2"), padding=1)


def euler(velocity, z, steps):
    """Its sampling: equal steps along velocity(z, t), from noise at 0 to data at 1."""
    for i in range(steps):
        z = z + velocity(z, torch.full((len(z),), i / steps, dtype=z.dtype)) / steps
    return z
