"""Peak memory of every case, ours against the peers' own code, by one tracer.

    python benchmarks/memory.py                                     # ours, and MONAI's
    python benchmarks/memory.py --peer wdm=PATH patchddm=PATH       # and the other peers'
    python benchmarks/memory.py --only wavelet-256-train --time 4   # and the cost of a step
    python benchmarks/memory.py --real wavelet-256-train --cap 8 24 # and within 8 and 24 GB

GB are 10^9 bytes of live tensors at batch 1, traced under fake tensors: no memory and no GPU are
needed. The state that a step or pass is given, in float32, counts for all. Ours hold float32
weights, gradients and both moments of Adam (the second step is traced); `peer_gb` is of the peer's
first step, without moments, and `peer_moments_gb` of its second. `gb` is without host memory,
`offload_gb` and `host_gb` are of the policy that keeps waiting volumes in host memory.

`--time F` measures training cases for real, on states of F times fewer voxels along each axis: the
policy's step against a step with nothing recomputed and nothing cut, steps taken in turn, in
processor time on the CPU and in seconds on a GPU.

`--real` takes steps on this machine's device and prints a line of JSON for every case, as soon as
it has been run: traced memory, and of every run the allocator's figures and those of the card,
which must be idle otherwise. A cap is the memory of a card: what the allocator may have is what is
left of it beside what the process holds outside of the allocator.
"""

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout

import cases
import peers
import torch
from cases import CASES, Case
from kernels import reason_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from volumediff.memory.heap import retain_heap
from volumediff.memory.memory_policy import MemoryPolicy
from volumediff.planning.overhead import OVERHEAD
from volumediff.planning.tracer import Peak, Tracer

GB = 1e9
TRACERS = 6  # processes beside one that uses the GPU, at most


def ours(case: Case, policy: MemoryPolicy, *, foreach: bool = False) -> Peak:
    """The peak of a step of ours."""
    with FakeTensorMode():
        module, z, step = prepared(case, policy, torch.device("cpu"), foreach=foreach)
        with Tracer() as tracer:
            tracer.follow(module.parameters())
            tracer.adopt("activations", [z])
            for _ in range(2 if cases.trains(case) else 1):
                step()
    return tracer.peak


def prepared(
    case: Case, policy: MemoryPolicy, device: torch.device, *, foreach: bool = False
) -> tuple[nn.Module, Tensor, Callable[[], None]]:
    """Our module, the state, and what takes a step or makes a pass with them.

    Arguments:
        foreach: whether Adam handles all parameters at once, as it does on a GPU
    """
    torch.manual_seed(0)
    module = case.build()
    if device.type != "cpu":  # fake parameters cannot be moved
        module.to(device)
    policy.apply(module)
    z = torch.randn((1, *case.shape)).to(device)
    if not cases.trains(case):
        policy.freeze(module)

        @torch.no_grad()
        def step() -> None:
            cases.run(module, case, z, policy=policy)

        return module, z, step
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-5, foreach=foreach)

    def step() -> None:
        cases.run(module, case, z, policy=policy).backward()
        optimizer.step()
        optimizer.zero_grad()

    return module, z, step


def theirs(
    case: Case, network: Callable[[], nn.Module | None], *, moments: bool = False
) -> Peak | None:
    """The peak of a step of the peer's code.

    Arguments:
        moments: whether it is the second step, for which Adam holds both moments
    """
    training = cases.trains(case)
    # What their code prints does not belong among the figures.
    with FakeTensorMode(), redirect_stdout(sys.stderr):
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
            optimizer = torch.optim.Adam(module.parameters(), foreach=False) if moments else None
            for _ in range(2 if moments else 1):
                with torch.set_grad_enabled(training), autocast:
                    result = cases.peer_of(module, case, z)
                if training:
                    result.backward()
                if optimizer is not None:
                    optimizer.step()
                    optimizer.zero_grad()
    return tracer.peak


def cost(case: Case, device: torch.device, rounds: int) -> float:
    """Time of a step under the case's policy over that of the plain one, median over rounds."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    steps = [prepared(case, policy, device)[2] for policy in (case.plain, case.policy)]
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


def real(
    case: Case, policy: MemoryPolicy, caps: list[float], steps: int
) -> list[dict[str, object]]:
    """Steps on this machine's device, as they come and then within each of the caps."""
    if not torch.cuda.is_available():
        return [_run(case, policy, torch.device("cpu"), steps)]
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(1.0, device)
    runs = [_run(case, policy, device, steps)]
    for cap in sorted(caps, reverse=True):
        left = cap * GB - _outside(device)
        torch.cuda.set_per_process_memory_fraction(max(0.0, min(1.0, left / total)), device)
        runs.append(
            {"cap_gb": cap, "allocator_gb": left / GB, **_run(case, policy, device, steps)}
        )
    return runs


def _outside(device: torch.device) -> int:
    """Bytes of the card that the allocator does not know of: context, libraries, others' work."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free - torch.cuda.memory_reserved(device)


def _run(case: Case, policy: MemoryPolicy, device: torch.device, steps: int) -> dict[str, object]:
    """Figures of a few steps, or why there are none.

    Where little memory is left, cuDNN says that it found no engine, and not that memory ran out.
    """
    facts: dict[str, object] = {}
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    try:
        facts |= _stepped(case, policy, device, steps)
    except (RuntimeError, MemoryError) as error:
        facts["failed"] = reason_of(error)
    if cuda:
        facts["peak_gb"] = torch.cuda.max_memory_allocated(device) / GB
        facts["reserved_gb"] = torch.cuda.max_memory_reserved(device) / GB
        facts["outside_gb"] = _outside(device) / GB
    # The next run begins with nothing reserved, neither on the card nor pinned.
    gc.collect()
    if cuda:
        torch.cuda.empty_cache()
        # Not in every supported torch.
        getattr(torch.accelerator, "empty_host_cache", lambda: None)()
    return facts


def _stepped(
    case: Case, policy: MemoryPolicy, device: torch.device, steps: int
) -> dict[str, object]:
    cuda = device.type == "cuda"
    seconds = []
    module, z, step = prepared(case, policy, device, foreach=cuda)
    if cuda:
        torch.cuda.reset_peak_memory_stats(device)
    with torch.cuda.device(device) if cuda else Tracer(device) as tracer:
        if not cuda:
            tracer.follow(module.parameters())
            tracer.adopt("activations", [z])
        for _ in range(steps):
            start = time.perf_counter()
            step()
            if cuda:
                torch.cuda.synchronize(device)
            seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds)} | ({} if cuda else {"peak_gb": tracer.peak.device / GB})


def chosen(name: str, factor: int, *, offload: bool) -> tuple[Case, MemoryPolicy]:
    """A case, perhaps smaller, and its policy with or without host memory."""
    case = cases.smaller(CASES[name], factor)
    return case, case.offloaded if offload else case.policy


def _traced(name: str, factor: int, offload: bool, foreach: bool) -> Peak:
    return ours(*chosen(name, factor, offload=offload), foreach=foreach)


def realities(options: argparse.Namespace) -> None:
    """`--real`: runs cases, and prints what was traced for them beside."""
    cuda = torch.cuda.is_available()
    facts = {"device": torch.cuda.get_device_name() if cuda else "cpu", "offload": options.offload}
    workers = max(1, min(TRACERS, (os.cpu_count() or 1) // 2))
    # Traces need no GPU and take seconds: they are made by other processes meanwhile.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        traces = {
            name: pool.submit(_traced, name, options.smaller, options.offload, cuda)
            for name in options.real
        }
        for name, trace in traces.items():
            case, policy = chosen(name, options.smaller, offload=options.offload)
            runs = real(case, policy, options.cap, options.steps)
            peak = trace.result()
            facts |= {
                "case": name,
                "shape": case.shape,
                "policy": vars(policy),
                "traced_gb": peak.device / GB,
                "host_gb": peak.host / GB,
                "planned_card_gb": OVERHEAD.card_gb(peak.device / GB),
                "runs": runs,
            }
            print(json.dumps(facts), flush=True)


def row(name: str, found: dict, options: argparse.Namespace) -> dict[str, object]:
    """Everything about one case."""
    case = CASES[name]
    peer = theirs(case, lambda: case.peer(found))
    whole = theirs(case, lambda: case.peer(found), moments=True) if cases.trains(case) else None
    kept, away = ours(case, case.policy), ours(case, case.offloaded)
    ratio = None
    if options.time and cases.trains(case):
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if device.type == "cpu":
            retain_heap()
        ratio = cost(cases.smaller(case, options.time), device, options.rounds)
    return {
        "case": name,
        "peer_gb": None if peer is None else peer.device / GB,
        "peer_moments_gb": None if whole is None else whole.device / GB,
        "gb": kept.device / GB,
        "offload_gb": away.device / GB,
        "host_gb": away.host / GB,
        "step_time_ratio": ratio,
    }


def table(rows: list[dict]) -> list[str]:
    """The rows as Markdown."""

    def shown(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    names = ("peer_gb", "peer_moments_gb", "gb", "offload_gb", "host_gb", "step_time_ratio")
    head = "| case | peer | peer with moments | ours | with host memory | host | step / plain |"
    lines = [head, "|---" * 7 + "|"]
    for found in rows:
        lines.append(f"| {found['case']} | " + " | ".join(shown(found[n]) for n in names) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--time", type=int, metavar="F", help="measure steps on smaller states")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--real", nargs="*", choices=CASES, help="run cases on this machine's device"
    )
    parser.add_argument(
        "--cap", nargs="*", type=float, default=[], help="GB of cards that --real tries to fit"
    )
    parser.add_argument("--steps", type=int, default=3, help="of every run of --real")
    parser.add_argument("--offload", action="store_true", help="--real with host memory")
    parser.add_argument(
        "--smaller", type=int, default=1, metavar="F", help="as --time, for --real"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    found = peers.checkouts(options.peer)
    if options.real:
        realities(options)
        return
    rows = []
    for name in options.only:
        rows.append(row(name, found, options))
        print(rows[-1], file=sys.stderr)
    print(json.dumps(rows, indent=1) if options.json else "\n".join(table(rows)))


if __name__ == "__main__":
    main()
