"""Time, memory and agreement of kernels that compute the same: which to ask for here.

    python benchmarks/kernels.py                 # on the GPU; without one, small shapes on the CPU
    python benchmarks/kernels.py --json k.json

Normalisation with FiLM and SiLU, eager against Triton, at the shapes of the shipped networks in
bfloat16 and channels last. The contestants take turns, after two calls that are not counted; the
figures are medians. Peak is what a forward and backward pass allocates beyond its inputs. Where
the Triton kernels agree with the eager form and take at least 10 % less time over all shapes, the
last line says so; where it does not, `memory.fused: false` switches them off. Nothing reads that
line: a choice made by timing inside a run could differ between its sessions, and with it the bits
of the run.

Attention: every backend at 4096 and 32768 tokens with heads of 32 and 64 channels.

Without a GPU, Triton's interpreter shows that the kernels compute the right numbers, and nothing
about their time.
"""

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from volumediff.networks._attention import KERNELS, attend
from volumediff.networks._layers import Norm
from volumediff.networks._norm_act import fused_refusal, norm_act

# Channels, voxels along one axis, what is normalised together.
SHAPES = {
    "cuda": [
        (64, 128, "group"),
        (29, 256, "group"),
        (128, 64, "group"),
        (256, 32, "group"),
        (64, 128, "slice"),
        (64, 128, "voxel"),
    ],
    "cpu": [(64, 24, "group"), (29, 32, "group"), (64, 24, "slice"), (64, 24, "voxel")],
    "interpreter": [(64, 8, "group"), (29, 16, "group"), (64, 8, "slice"), (64, 8, "voxel")],
}
TOKENS = {"cuda": [(4096, 32), (4096, 64), (32768, 32), (32768, 64)], "cpu": [(512, 32)]}
CHANNELS = 256  # of the attention, in heads of 32 or 64
PAYS = 0.9  # fused over eager, in time
AGREES = 2**-6  # relative, in the 2-norm: two roundings to bfloat16 on either side
SECONDS = 0.3  # of measurement per contestant and pass


def race(contestants: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Median milliseconds of each, taken in turn."""
    times = {name: [] for name in contestants}
    rounds, spent = 0, 0.0
    while rounds < 4 or (rounds < 50 and spent < SECONDS * len(contestants)):
        for name, contestant in contestants.items():
            start = _now(device)
            contestant()
            seconds = _now(device) - start
            if rounds >= 2:
                times[name].append(1e3 * seconds)
                spent += seconds
        rounds += 1
    return {name: statistics.median(values) for name, values in times.items()}


def _now(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mb(contestant: Callable[[], object], device: str) -> float | None:
    """Memory that a call allocates beyond what there was, on a GPU."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    contestant()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def reason_of(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    return str(error).partition("\n")[0] or type(error).__name__


def norm_inputs(channels: int, side: int, device: str) -> list[Tensor]:
    """x, scale, shift and the gradient of the result."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (1, side, side, side, channels)
    x, grad = (
        torch.randn(shape, generator=generator, device=device, dtype=torch.bfloat16).movedim(-1, 1)
        for _ in range(2)
    )
    film = torch.randn((2, 1, channels), generator=generator, device=device)
    return [x.requires_grad_(), *(v.clone().requires_grad_() for v in (1 + 0.3 * film)), grad]


def norm_row(channels: int, side: int, kind: str, device: str) -> dict:
    """Figures of eager and fused normalisation at one shape, or why there are none."""
    row = {"channels": channels, "side": side, "kind": kind, "eager": {}, "fused": {}}
    try:
        row["reason"] = _measure_norm(row, device)
    except Exception as error:  # noqa: BLE001 - the errors of a compiler have no common base
        row["reason"] = reason_of(error)
    return row


def _measure_norm(row: dict, device: str) -> str:
    """Fills the row; why the fused kernels are not in it, or an empty string."""
    x, scale, shift, grad = norm_inputs(row["channels"], row["side"], device)
    kind, groups = row["kind"], Norm(row["channels"], kind=row["kind"]).groups

    def forward(name: str) -> Tensor:
        named = {"kind": kind, "groups": groups, "eps": 1e-5, "fused": name == "fused"}
        return norm_act(x, scale, shift, **named)

    def both(name: str) -> tuple[Tensor, ...]:
        y = forward(name)
        return (y.detach(), *torch.autograd.grad(y, (x, scale, shift), grad))

    reason = fused_refusal(x)
    names = ["eager"] if reason else ["eager", "fused"]
    for key, function in (("forward_ms", forward), ("both_ms", both)):
        with torch.set_grad_enabled(key == "both_ms"):
            times = race({name: partial(function, name) for name in names}, device)
        for name, value in times.items():
            row[name][key] = value
    for name in names:
        row[name]["peak_mb"] = peak_mb(partial(both, name), device)
    if not reason:
        pairs = zip(both("fused"), both("eager"), strict=True)
        row["error"] = max(_difference(a, b) for a, b in pairs)
    return reason


def _difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, summed in float32 or wider."""
    dtype = torch.promote_types(a.dtype, torch.float32)
    norm = torch.linalg.vector_norm
    return float(norm(a - b, dtype=dtype) / norm(b, dtype=dtype))


def attention_rows(tokens: int, size: int, device: str) -> list[dict]:
    """Figures of every backend at one shape, or why it has none."""
    generator = torch.Generator(device).manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    shape = (4, 1, tokens, CHANNELS // size, size)
    data = torch.randn(shape, generator=generator, device=device).to(dtype)
    leaves, grad = [v.requires_grad_() for v in data[:3].unbind(0)], data[3]
    rows = []
    for backend in ("auto", *KERNELS, "xformers"):
        row = {"tokens": tokens, "head": size, "backend": backend, "reason": ""}

        def forward(backend: str = backend) -> Tensor:
            return attend(*leaves, backend=backend)

        def both(forward: Callable[[], Tensor] = forward) -> tuple[Tensor, ...]:
            return torch.autograd.grad(forward(), leaves, grad)

        try:
            with torch.no_grad():
                row["forward_ms"] = race({backend: forward}, device)[backend]
            row["both_ms"] = race({backend: both}, device)[backend]
            row["peak_mb"] = peak_mb(both, device)
        except (ValueError, RuntimeError, ImportError) as error:
            row["reason"] = reason_of(error)
        rows.append(row)
    return rows


def verdict(rows: list[dict]) -> str:
    """What the measurements say about `memory.fused` on this device."""
    raced = [row for row in rows if row["fused"].get("both_ms")]
    if not raced:
        return "fused: not measured here"
    unlike = [row for row in raced if not row["error"] < AGREES]
    if unlike:
        row = unlike[0]
        return (
            f"fused: differs from eager by {row['error']:.1e} at {row['channels']} channels, "
            f"{row['side']}³, {row['kind']}; set memory.fused to false and report it"
        )
    eager, fused = (sum(row[name]["both_ms"] for row in raced) for name in ("eager", "fused"))
    word = "pays" if fused <= PAYS * eager else "does not pay"
    choice = "null" if fused <= PAYS * eager else "false"
    return (
        f"fused: {fused:.2f} ms against {eager:.2f} ms over {len(raced)} of {len(rows)} shapes, "
        f"{word} on this device: memory.fused: {choice}"
    )


def interpreter_check() -> str:
    """What Triton's interpreter, in a process of its own, says about the kernels' numbers."""
    if importlib.util.find_spec("triton") is None:
        return "interpreter: triton is not installed"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__, "--interpreter"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return f"interpreter: failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
    return done.stdout.strip()


def interpret() -> str:
    """The largest difference from eager, under the interpreter."""
    errors = []
    for channels, side, kind in SHAPES["interpreter"]:
        x, *film, grad = norm_inputs(channels, side, "cpu")
        results = []
        for fused in (True, False):
            leaves = [x, *film] if fused else [v.detach().double() for v in (x, *film)]
            leaves = [v.requires_grad_() for v in leaves]
            groups = Norm(channels, kind=kind).groups
            y = norm_act(*leaves, kind=kind, groups=groups, eps=1e-5, fused=fused)
            results.append((y.detach(), *torch.autograd.grad(y, leaves, grad.to(y.dtype))))
        errors += [_difference(a.double(), b) for a, b in zip(*results, strict=True)]
    word = "agree" if max(errors) < AGREES else "DISAGREE"
    return (
        f"interpreter (numbers only, no time): the kernels {word} with eager float64, "
        f"largest relative difference {max(errors):.1e}"
    )


def _cell(value: float | None, form: str = ".2f") -> str:
    return "-" if value is None else f"{value:{form}}"


def norm_table(rows: list[dict]) -> list[str]:
    lines = [
        "| channels | voxels | kind | forward, ms: eager | fused | both, ms: eager | fused "
        "| eager / fused | peak, MB: eager | fused | difference | |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        eager, fused = row["eager"], row["fused"]
        cells = [str(row["channels"]), f"{row['side']}³", row["kind"]]
        cells += [_cell(e.get(k)) for k in ("forward_ms", "both_ms") for e in (eager, fused)]
        times = (eager.get("both_ms"), fused.get("both_ms"))
        cells.append(_cell(times[0] / times[1] if all(times) else None))
        cells += [_cell(e.get("peak_mb"), ".0f") for e in (eager, fused)]
        cells += [_cell(row.get("error"), ".1e"), row["reason"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def attention_table(rows: list[dict]) -> list[str]:
    lines = ["| tokens | head | backend | forward, ms | both, ms | peak, MB | |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [str(row["tokens"]), str(row["head"]), row["backend"]]
        cells += [_cell(row.get("forward_ms")), _cell(row.get("both_ms"))]
        cells += [_cell(row.get("peak_mb"), ".0f"), row["reason"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def machine(device: str) -> dict:
    facts = {"torch": torch.__version__, "threads": torch.get_num_threads()}
    if importlib.util.find_spec("triton"):
        facts["triton"] = importlib.metadata.version("triton")
    if device == "cuda":
        facts["device"] = torch.cuda.get_device_name()
        facts["capability"] = ".".join(map(str, torch.cuda.get_device_capability()))
    else:
        facts["device"] = platform.processor() or platform.machine()
    return facts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--interpreter", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.interpreter:
        print(interpret())
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    facts = machine(device)
    print(", ".join(f"{key} {value}" for key, value in facts.items()), end="\n\n")
    results = {"machine": facts, "norm_act": [], "attention": [], "verdict": []}

    def keep(key: str, rows: list) -> None:
        # What is there is written at once, for a run that ends early.
        results[key] += rows
        if options.json:
            options.json.write_text(json.dumps(results, indent=2))

    for shape in SHAPES[device]:
        keep("norm_act", [norm_row(*shape, device)])
    print("\n".join(norm_table(results["norm_act"])), end="\n\n")
    for case in TOKENS[device]:
        keep("attention", attention_rows(*case, device))
    print("\n".join(attention_table(results["attention"])), end="\n\n")
    keep("verdict", [interpreter_check()] if device == "cpu" else [])
    keep("verdict", [verdict(results["norm_act"])])
    print("\n".join(results["verdict"]))


if __name__ == "__main__":
    main()
