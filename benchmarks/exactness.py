"""Whether execution in slabs gives on this device what the network gives in one piece.

    python benchmarks/exactness.py
    python benchmarks/exactness.py --only unet large

Small networks, output and gradients in float64, float32 (without TF32) and bfloat16, in slabs that
do not divide the volume, with recomputation and with host memory. Errors are relative, in the
2-norm, against the network in one piece in float64 on the same device. In float64 slabs must meet
it to rounding; in the other formats they may be twice as far from it as one piece is.

`large` runs volumes of more than 2³¹ elements, which repeat a few planes. Where layers look no
further than the plane, everything repeats with them: statistics, outputs, gradients; the oracle is
the volume of those few planes, in one piece. A convolution across planes at the end shows halos:
its output is compared away from the first and last planes.

One line of JSON for every check, as soon as it is done.
"""

import argparse
import copy
import json
import math
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from volumediff.autoencoders.monai_kl import MonaiKL
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.memory.streaming import stream
from volumediff.networks._layers import Conv, NormAct
from volumediff.networks.pseudo3d import Pseudo3D
from volumediff.networks.unet import UNet
from volumediff.planning.shortage import is_shortage

WIDTHS = {"cuda": (32, 64), "cpu": (8, 16)}
SIZES = {"cuda": (27, 24, 20), "cpu": (9, 8, 6)}
SLAB = 4
HOW = {
    "slabs": {"slab": SLAB},
    "slabs, recomputed": {"slab": SLAB, "checkpoint": True},
    "slabs, host memory": {"slab": SLAB, "checkpoint": True, "offload": True},
    "host memory": {"offload": True},
}
INFERENCE = {
    "slabs": {"slab": SLAB},
    "slabs, remade": {"slab": SLAB, "recompute_skips": True},
    "slabs, host memory": {"slab": SLAB, "offload": True},
}
DTYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}
ROUNDING = {"float64": 1e-10, "float32": 1e-6, "bfloat16": 1e-3}  # besides twice that of one piece
# Of the large volume: channels, planes that repeat, how often, height and width.
LARGE = {"cuda": (16, 8, 65, 520, 520), "cpu": (8, 4, 6, 12, 10)}
LARGE_BOUND = 2**-7  # relative, in the 2-norm: a rounding to bfloat16 on either side, and more


def unet(widths: tuple[int, ...]) -> nn.Module:
    return UNet(2, 2, widths=widths, blocks=2, attention_levels=(1,))


def pseudo3d(widths: tuple[int, ...]) -> nn.Module:
    return Pseudo3D(2, 2, widths=widths, blocks=1, attention_levels=(1,))


def decoder(widths: tuple[int, ...]) -> nn.Module:
    return MonaiKL(1, widths=widths, blocks=1, groups=4, upsampling="trilinear")


NETWORKS = {"unet": unet, "pseudo3d": pseudo3d, "decoder": decoder}


def filled(module: nn.Module) -> nn.Module:
    """No weight is zero, so that nothing can be left out unnoticed."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return module


def passed(module: nn.Module, x: Tensor, t: Tensor) -> Tensor:
    return module.decode(x) if isinstance(module, MonaiKL) else module(x, t)


def checks(name: str, dtype: str, device: torch.device) -> Iterator[dict]:
    """Errors of every way to run a network, and what is allowed."""
    torch.manual_seed(0)
    truth = filled(NETWORKS[name](WIDTHS[device.type])).to(device).double()
    channels = truth.latent_channels if name == "decoder" else truth.in_channels
    x = torch.randn((1, channels, *SIZES[device.type])).to(device)
    t = torch.full((1,), 0.4, device=device)
    module = truth if dtype == "float64" else copy.deepcopy(truth).float()
    policy = {"dtype": "bfloat16" if dtype == "bfloat16" else "float32"}

    def results(module: nn.Module, policy: MemoryPolicy, dtype: torch.dtype) -> list[Tensor]:
        """Output, gradient of the input, gradients of the parameters."""
        policy.apply(module)
        given = x.to(dtype, copy=True).requires_grad_()
        module.zero_grad()
        y = passed(module, given, t)
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        y.backward(g)
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        return [y.detach(), given.grad, torch.cat(gradients)]

    names = ("output", "gradient of x", "gradients of weights")
    exact = results(truth, MemoryPolicy(), torch.float64)
    whole = results(module, MemoryPolicy(**policy, channels_last=True), DTYPES[dtype])
    bounds = [ROUNDING[dtype] + 2 * error(a, b) for a, b in zip(whole, exact, strict=True)]
    for how, words in HOW.items():
        for last in (False, True):
            found = results(
                module, MemoryPolicy(**policy, channels_last=last, **words), DTYPES[dtype]
            )
            for what, a, b, bound in zip(names, found, exact, bounds, strict=True):
                layout = ", channels last" if last else ""
                yield verdict(f"{how}{layout}: {what}", error(a, b), bound)
    for how, words in INFERENCE.items():
        MemoryPolicy(**policy, channels_last=True, **words).apply(module)
        with torch.no_grad():
            y = passed(module, x.to(DTYPES[dtype]), t)
        yield verdict(f"inference, {how}: output", error(y, exact[0]), bounds[0])


def error(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b| in float64."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def verdict(what: str, value: float, bound: float) -> dict:
    """One comparison; NaN is not within any bound."""
    return {"what": what, "error": value, "bound": bound, "ok": value <= bound}


def large(device: torch.device) -> Iterator[dict]:
    """Volumes that repeat, against a single period."""
    channels, period, times, height, width = LARGE[device.type]
    dtype, planes = torch.bfloat16, period * times
    torch.manual_seed(0)
    first = Conv(channels, channels, kernel=(1, 3, 3))
    norm = NormAct(channels, groups=channels // 2)
    lasts = {"planar": Conv(channels, channels, kernel=(1, 3, 3)), "3D": Conv(channels, channels)}
    module = nn.ModuleList([first, norm, *lasts.values()])
    filled(module).to(device)
    MemoryPolicy(channels_last=True).apply(module)
    shape = (1, period, height, width, channels)
    small = torch.randn(shape, device=device, dtype=dtype).movedim(-1, 1)
    g = torch.randn(shape, device=device, dtype=dtype).movedim(-1, 1)
    slab = period + period // 2 + 1

    def repeated(x: Tensor, number: int) -> Tensor:
        """So many periods, channels last."""
        return x.movedim(1, -1).repeat(1, number, 1, 1, 1).movedim(-1, 1)

    def body(kind: str) -> Callable[[Tensor], Tensor]:
        return lambda x: lasts[kind](norm(first(x)))

    def farthest(found: Tensor, oracle: Tensor, begin: int, end: int) -> float:
        parts = [found.narrow(2, i * period, period) for i in range(begin, end)]
        return max(error(part, oracle) for part in parts)

    size = planes * height * width * channels
    with torch.no_grad():
        oracle = body("3D")(repeated(small, 3)).narrow(2, period, period)
        for offload in (False, True):
            y = stream(body("3D"), repeated(small, times), slab=slab, offload=offload)
            where = ", host memory" if offload else ""
            what = f"{size} elements{where}: output"
            yield verdict(what, farthest(y, oracle, 1, times - 1), LARGE_BOUND)
            del y
    weights = [*first.parameters(), *norm.parameters(), *lasts["planar"].parameters()]
    x = small.clone().requires_grad_()
    wanted = torch.autograd.grad(body("planar")(x), [x, *weights], g)
    x = repeated(small, times).requires_grad_()
    y = stream(body("planar"), x, slab=slab, checkpoint=9)
    found = torch.autograd.grad(y, [x, *weights], repeated(g, times))
    del y
    what = f"{size} elements: gradient of x"
    yield verdict(what, farthest(found[0], wanted[0], 0, times), LARGE_BOUND)
    sums = [torch.cat([w.flatten() for w in ws[1:]]).double() for ws in (found, wanted)]
    what = f"{size} elements: gradients of weights"
    yield verdict(what, error(sums[0], times * sums[1]), 2 * LARGE_BOUND)


def main() -> None:
    names = [f"{n} {d}" for n in NETWORKS for d in DTYPES] + ["large"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=names, default=names, metavar="CHECK")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # TF32 has 10 bits: an error of it would hide one of ours.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for name in options.only:
        start = time.monotonic()
        row = {"case": name, "device": device.type}
        try:
            parts = large(device) if name == "large" else checks(*name.split(), device)
            rows = list(parts)
            row |= {
                "comparisons": len(rows),
                "ok": all(r["ok"] for r in rows),
                "worst": max(rows, key=lambda r: _badness(r["error"], r["bound"])),
                "failures": [r for r in rows if not r["ok"]],
                "rows": rows,
            }
        except (RuntimeError, MemoryError) as shortage:
            if not is_shortage(shortage):
                raise
            row["failed"] = f"out of memory: {str(shortage).splitlines()[0]}"
        print(json.dumps(row | {"seconds": time.monotonic() - start}), flush=True)


def _badness(value: float, bound: float) -> float:
    return math.inf if math.isnan(value) else value / bound


if __name__ == "__main__":
    main()
