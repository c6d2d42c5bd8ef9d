"""Peak memory of every case, ours against the peers' own code, by one tracer.

    python benchmarks/memory.py                                     # ours, and MONAI's
    python benchmarks/memory.py --peer wdm=PATH patchddm=PATH       # and the other peers'
    python benchmarks/memory.py --only wavelet-256-train --time 4   # and the cost of a step
    python benchmarks/memory.py --real wavelet-256-train --cap 8    # a step on a GPU of 8 GB

GB are 10^9 bytes of live tensors at batch 1, traced under fake tensors: no memory and no GPU are
needed. Ours hold float32 weights, gradients and both moments of Adam (the second step is traced);
peers are traced in their first step, without moments. `gb` is without host memory, `offload_gb`
and `host_gb` are of the policy that keeps waiting volumes in host memory.

`--time F` measures training cases for real, on states of F times fewer voxels along each axis: the
policy's step against a step with nothing recomputed and nothing cut, steps taken in turn, in
processor time on the CPU and in seconds on a GPU.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable

import cases
import peers
import torch
from cases import CASES, Case
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from volumediff.memory.policy import MemoryPolicy, retain_heap
from volumediff.memory.tracer import Peak, Tracer

GB = 1e9


def ours(case: Case, policy: MemoryPolicy) -> Peak:
    """The peak of a step of ours."""
    with FakeTensorMode():
        module, step = prepared(case, policy, torch.device("cpu"))
        with Tracer() as tracer:
            tracer.follow(module.parameters())
            for _ in range(2 if case.work in ("train", "autoencode") else 1):
                step()
    return tracer.peak


def prepared(
    case: Case, policy: MemoryPolicy, device: torch.device
) -> tuple[nn.Module, Callable[[], None]]:
    """Our module, and what takes a step or makes a pass with it."""
    torch.manual_seed(0)
    module = case.build()
    if device.type != "cpu":  # fake parameters cannot be moved
        module.to(device)
    policy.apply(module)
    z = torch.randn((1, *case.shape)).to(device)
    if case.work in ("infer", "decode"):
        policy.freeze(module)

        @torch.no_grad()
        def step() -> None:
            cases.run(module, case, z, policy=policy)

        return module, step
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-5)

    def step() -> None:
        cases.run(module, case, z, policy=policy).backward()
        optimizer.step()
        optimizer.zero_grad()

    return module, step


def theirs(case: Case, network: Callable[[], nn.Module | None]) -> Peak | None:
    """The peak of a first step of the peer's code."""
    training = case.work in ("train", "autoencode")
    with FakeTensorMode():
        module = network()
        if module is None:
            return None
        # What their own `to` notes down; fake parameters cannot be moved.
        module.devices = [torch.device("cpu")] * 2
        z = torch.randn((1, *case.shape))
        with Tracer() as tracer:
            tracer.follow(module.parameters())
            tracer.adopt("activations", [z])
            # MAISI's norms give float16; elsewhere attention in it has no fake kernel on the CPU.
            half = torch.float16 if case.work == "decode" else torch.bfloat16
            autocast = torch.autocast("cpu", half, enabled=case.autocast)
            with torch.set_grad_enabled(training), autocast:
                result = cases.peer_of(module, case, z)
            if training:
                result.backward()
    return tracer.peak


def cost(case: Case, device: torch.device, rounds: int) -> float:
    """Time of a step under the case's policy over that of the plain one, median over rounds."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    steps = [prepared(case, policy, device)[1] for policy in (case.plain, case.policy)]
    ratios = []
    for turn in range(rounds + 1):
        seconds = []
        for step in steps:
            start = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds.append(clock() - start)
        if turn > 0:
            ratios.append(seconds[1] / seconds[0])
    return statistics.median(ratios)


def real(name: str, cap: float | None, factor: int, *, offload: bool) -> dict[str, object]:
    """Steps on this machine's device, within a cap, beside the traced figure."""
    case = cases.smaller(CASES[name], factor) if factor > 1 else CASES[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    policy = case.offloaded if offload else case.policy
    facts: dict[str, object] = {"case": name, "shape": case.shape, "offload": offload}
    facts["traced_gb"] = ours(case, policy).device / GB
    if device.type == "cuda":
        total = torch.cuda.get_device_properties(device).total_memory
        if cap is not None:
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap * GB / total), device)
        facts |= {"device": torch.cuda.get_device_name(device), "cap_gb": cap}
    try:
        _, step = prepared(case, policy, device)
        seconds = []
        with Tracer(device) if device.type == "cpu" else torch.cuda.device(device) as tracer:
            for _ in range(3):
                start = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds.append(time.perf_counter() - start)
        facts["seconds"] = min(seconds)
        facts["peak_gb"] = (
            tracer.peak.device / GB
            if device.type == "cpu"
            else torch.cuda.max_memory_allocated(device) / GB
        )
        if device.type == "cuda":
            facts["reserved_gb"] = torch.cuda.max_memory_reserved(device) / GB
    except torch.OutOfMemoryError as error:
        facts["failed"] = str(error).splitlines()[0]
    return facts


def row(name: str, found: dict, options: argparse.Namespace) -> dict[str, object]:
    """Everything about one case."""
    case = CASES[name]
    peer = theirs(case, lambda: case.peer(found))
    kept, away = ours(case, case.policy), ours(case, case.offloaded)
    ratio = None
    if options.time and case.work in ("train", "autoencode"):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            retain_heap()
        ratio = cost(cases.smaller(case, options.time), device, options.rounds)
    return {
        "case": name,
        "peer_gb": None if peer is None else peer.device / GB,
        "gb": kept.device / GB,
        "offload_gb": away.device / GB,
        "host_gb": away.host / GB,
        "step_time_ratio": ratio,
    }


def table(rows: list[dict]) -> list[str]:
    """The rows as Markdown."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    names = ("peer_gb", "gb", "offload_gb", "host_gb", "step_time_ratio")
    lines = ["| case | peer | ours | with host memory | host | step / plain |", "|---" * 6 + "|"]
    for found in rows:
        lines.append(f"| {found['case']} | " + " | ".join(shown(found[n]) for n in names) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--time", type=int, metavar="F", help="measure steps on smaller states")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--real", choices=CASES, help="run one case on this machine's device")
    parser.add_argument("--cap", type=float, help="GB that --real may use on a GPU")
    parser.add_argument("--offload", action="store_true", help="--real with host memory")
    parser.add_argument(
        "--smaller", type=int, default=1, metavar="F", help="as --time, for --real"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = peers.checkouts(options.peer)
    if options.real:
        print(
            json.dumps(real(options.real, options.cap, options.smaller, offload=options.offload))
        )
        return
    rows = []
    for name in options.only:
        rows.append(row(name, found, options))
        print(rows[-1], file=sys.stderr)
    print(json.dumps(rows, indent=1) if options.json else "\n".join(table(rows)))


if __name__ == "__main__":
    main()
