"""Time that a training step or a pass should take on a GPU, ours and by the peers' own code.

    python benchmarks/roofline.py                                   # ours, and MONAI's
    python benchmarks/roofline.py --peer wdm=PATH patchddm=PATH     # and the other peers'
    python benchmarks/roofline.py --only wavelet-128-train --kernels 12   # where it goes

No GPU is needed: the code runs on tensors without data that say they are on a GPU, and the
kernels that it launches are counted and timed by the model of `gpu_model.py`, for an H200: 790
TFLOP/s in half precision, 400 in TF32, 67 in float32, 4.3 TB/s, 4 µs per launch. Networks are
equal, batch 1; a training step is forward, loss, backward and AdamW, the second one, ours fused.
The peers run in the precision of their own scripts: float32 with convolutions in TF32, or
autocast.

Milliseconds are with launches. `convolutions_ms` is what the convolutions of the plain step take
alone: no choice of kernels around them can go below.
"""

import argparse
import json
import sys
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import replace
from pathlib import Path

import cases
import peers
import torch
from cases import CASES, Case
from gpu_model import H200, Autocast, Work, modelled
from torch import nn

from volumediff.memory.memory_policy import MemoryPolicy

MODELLED = (
    "wavelet-128-train",
    "wavelet-256-train",
    "wavelet-256-infer",
    "patch-128-train",
    "patch-256-train",
    "patch-256-infer",
    "ae-256-decode",
    "latent-256-train",
)
MS, TERA, GB = 1e3, 1e12, 1e9


def ours(case: Case, policy: MemoryPolicy) -> Work:
    """The kernels of a step or pass of ours."""
    with modelled() as work:
        with torch.device("cuda"):
            module = case.build()
            z = torch.randn((1, *case.shape))
        policy.apply(module)
        if not cases.trains(case):
            policy.freeze(module)
        return _step(
            module, case, work, lambda: cases.run(module, case, z, policy=policy), fused=True
        )


def theirs(case: Case, found: dict[str, Path]) -> Work | None:
    """The kernels of the peer's own code; None where it is not at hand."""
    # What their code prints does not belong among the figures.
    with redirect_stdout(sys.stderr), modelled() as work:
        with torch.device("cuda"):
            module = case.peer(found)
            z = torch.randn((1, *case.shape))
        if module is None:
            return None
        module.devices = [z.device] * 2  # what their own `to` notes down

        def run() -> torch.Tensor:
            with Autocast(torch.float16) if case.autocast else nullcontext():
                return cases.peer_of(module, case, z)

        return _step(module, case, work, run)


def _step(
    module: nn.Module,
    case: Case,
    work: Work,
    run: Callable[[], torch.Tensor],
    *,
    fused: bool | None = None,
) -> Work:
    """What one step launches, when the optimizer has its moments.

    Arguments:
        fused: whether AdamW is fused, as ours is; the peers take torch's default
    """
    if not cases.trains(case):
        work.kernels.clear()
        with torch.no_grad():
            run()
        return work
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-5, fused=fused)
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    work.kernels.clear()
    torch.autograd.backward(run())
    optimizer.step()
    optimizer.zero_grad()
    return work


def row(
    name: str, found: dict[str, Path], kernels: int, slab: int | None = None
) -> dict[str, object]:
    """Everything about one case; in slabs of other planes than its own if asked for."""
    case = CASES[name]
    peer, plain = theirs(case, found), ours(case, case.plain)
    slabs = ours(case, replace(case.policy, slab=slab or case.policy.slab))
    for who, work in {"peer": peer, "plain": plain, "slabs": slabs}.items():
        if work is not None and kernels:
            _show(f"{name}, {who}", work, kernels)
    return {
        "case": name,
        "peer_ms": None if peer is None else MS * peer.seconds(H200),
        "ms": MS * plain.seconds(H200),
        "slabs_ms": MS * slabs.seconds(H200),
        "convolutions_ms": MS * plain.convolutions().seconds(H200),
        "launches": plain.launches,
        "tflop": plain.flop / TERA,
        "gb": plain.size / GB,
        "peer_launches": None if peer is None else peer.launches,
        "peer_tflop": None if peer is None else peer.flop / TERA,
        "peer_gb": None if peer is None else peer.size / GB,
        "slabs_launches": slabs.launches,
    }


def _show(title: str, work: Work, most: int) -> None:
    """The operations that take longest, on the error stream."""
    seconds = work.seconds(H200)
    print(f"{title}: {MS * seconds:.1f} ms, {work.launches} launches", file=sys.stderr)
    for operation, (launches, time) in [*work.by_name(H200).items()][:most]:
        print(f"  {MS * time:8.2f} ms {launches:6d}  {operation}", file=sys.stderr)


COLUMNS = {
    "peer_tflop": "peer TFLOP",
    "tflop": "TFLOP",
    "peer_gb": "peer GB",
    "gb": "GB",
    "peer_launches": "peer launches",
    "launches": "launches",
    "slabs_launches": "in slabs",
    "peer_ms": "peer ms",
    "ms": "ms",
    "slabs_ms": "in slabs",
    "convolutions_ms": "convolutions alone",
}


def table(rows: list[dict]) -> list[str]:
    """The rows as Markdown."""

    def shown(value: float | None) -> str:
        if value is None:
            return ""
        return str(value) if isinstance(value, int) else f"{value:.3g}"

    lines = [f"| case | {' | '.join(COLUMNS.values())} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for found in rows:
        lines.append(f"| {found['case']} | {' | '.join(shown(found[n]) for n in COLUMNS)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", nargs="*", choices=CASES, default=MODELLED, metavar="CASE")
    parser.add_argument(
        "--kernels", type=int, default=0, metavar="N", help="list the N slowest operations"
    )
    parser.add_argument("--slab", type=int, metavar="PLANES", help="of the policy in slabs")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = peers.checkouts(options.peer)
    rows = []
    for name in options.only:
        rows.append(row(name, found, options.kernels, options.slab))
        print(rows[-1], file=sys.stderr)
    print(json.dumps(rows, indent=1) if options.json else "\n".join(table(rows)))


if __name__ == "__main__":
    main()
