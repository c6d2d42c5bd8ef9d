"""Time of a training step or a pass, ours under the policies of memory against the peer's code.

    python benchmarks/throughput.py                                       # ours, and MONAI's
    python benchmarks/throughput.py --peer wdm=PATH patchddm=PATH         # and the other peers'
    python benchmarks/throughput.py --only latent-256-train --smaller 4   # a quick check

A step is forward, loss, backward and AdamW (ours fused, as in training) at batch 1, or a pass
without gradients, for every case of `cases.py` with a network. The peer's network is the equal
one, proven so by the tests of the importers, but for the cases named `unet`: our own U-Net at the
peer's widths, with fewer operations. The policies hold activations in bfloat16 and channels last;
`float32` is plain in single precision. The peer runs as its scripts do, in float32 or under
autocast (float16, on the CPU bfloat16), with torch's defaults for TF32.

Every contestant lives in a process of its own, and they take steps in turn on the same device, so
that other load meets all of them; the first step of each is discarded. Ratios are medians over
rounds of the peer's time by ours. On the CPU wall and processor time are measured. On a GPU, wall
time around a synchronised step; a turn begins with one that is not counted and ends with giving
memory back, so that no contestant has to live with what another one reserved.
"""

import argparse
import functools
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cases
import peers
import torch
from cases import Case
from kernels import reason_of
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from volumediff.memory.heap import retain_heap
from volumediff.memory.memory_policy import MemoryPolicy

WITH_NETWORK = {
    n: c for n, c in {**cases.CASES, **cases.TIMED}.items() if cases.trains(c) or c.work == "infer"
}
POLICIES: dict[str, Callable[[Case], MemoryPolicy]] = {
    "plain": lambda case: case.plain,
    "checkpoint": lambda case: replace(case.plain, checkpoint=cases.trains(case)),
    "slabs": lambda case: case.policy,
    "slabs+offload": lambda case: case.offloaded,
    "float32": lambda case: MemoryPolicy(),
}
PEER = "peer"
GB = 1e9

Loss = Callable[[nn.Module, Tensor], Tensor]


def network_of(name: str, case: Case, found: dict[str, Path]) -> nn.Module | None:
    """The contestant's network; None where the peer's is not at hand."""
    torch.manual_seed(0)
    return case.peer(found) if name == PEER else case.build()


def loss_of(name: str, case: Case, device: torch.device) -> Loss:
    """The contestant's loss, as a function of network and state."""
    if name != PEER:
        policy = POLICIES[name](case)
        return lambda network, z: cases.run(network, case, z, policy=policy)
    dtype = torch.float16 if device.type == "cuda" else torch.bfloat16

    def loss(network: nn.Module, z: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype, enabled=case.autocast):
            return cases.peer_of(network, case, z)

    return loss


def size_of(name: str, case: Case, found: dict[str, Path]) -> dict[str, float] | None:
    """Parameters and operations of a forward pass; None where there is no network."""
    cpu = torch.device("cpu")
    with FakeTensorMode(), FlopCounterMode(display=False) as counter:
        network = network_of(name, case, found)
        if network is None:
            return None
        if name == PEER:
            network.devices = [cpu] * 2  # what their own `to` notes down; fakes cannot be moved
        loss_of("float32" if name != PEER else name, case, cpu)(
            network, torch.randn((1, *case.shape))
        )
    parameters = sum(p.numel() for p in network.parameters())
    return {"parameters": parameters, "forward_flop": counter.get_total_flops()}


def stepper(
    name: str, case: Case, found: dict[str, Path], device: torch.device
) -> Callable[[], None]:
    """What takes a step, or makes a pass."""
    network = network_of(name, case, found)
    network.to(device)
    if name != PEER:
        POLICIES[name](case).apply(network)
    loss = loss_of(name, case, device)
    z = torch.randn((1, *case.shape)).to(device)
    if not cases.trains(case):
        if name != PEER:
            POLICIES[name](case).freeze(network)
        return torch.no_grad()(lambda: loss(network, z))
    # Ours as training does, the peer's as its scripts do.
    fused = None if name == PEER else True
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=fused)

    def step() -> None:
        optimizer.zero_grad()
        loss(network, z).backward()
        optimizer.step()

    return step


def timed(step: Callable[[], None], device: torch.device) -> dict[str, float]:
    """A turn."""
    cuda = device.type == "cuda"
    if cuda:
        step()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    if cuda:
        torch.cuda.synchronize(device)
    facts = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    if cuda:
        facts["peak_gb"] = torch.cuda.max_memory_allocated(device) / GB
        torch.cuda.empty_cache()
    return facts


def work(name: str, found: dict[str, Path], factor: int) -> None:
    """The contestant's process: answers `case NAME` and `step` lines with one of facts each."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a network prints goes to the error stream
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and name != PEER:
        retain_heap()  # as training does
    step: Callable[[], None] | None = None
    for line in sys.stdin:
        word, _, case_name = line.strip().partition(" ")
        try:
            if word == "case":
                step = None
                _give_back(device)
                case = cases.smaller(WITH_NETWORK[case_name], factor)
                facts = size_of(name, case, found)
                if facts is not None:
                    step = stepper(name, case, found, device)
            else:
                facts = timed(step, device)
        except (RuntimeError, MemoryError) as error:
            step, facts = None, {"failed": reason_of(error)}
        if step is None:
            _give_back(device)
        replies.write(json.dumps(facts) + "\n")
        replies.flush()


def _give_back(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


class Contestant:
    """A process that takes steps when asked to."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name, self.asked = name, False
        self.process = subprocess.Popen(
            [*command, "--worker", name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, line: str) -> None:
        """Sends a line."""
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:  # its end is seen when the answer is read
            pass

    def answer(self) -> dict | None:
        """What it replies; `failed` if it has died."""
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        return {"failed": f"its process ended with status {self.process.wait()}"}

    @property
    def alive(self) -> bool:
        """Whether it can be asked again."""
        return self.process.poll() is None

    def close(self) -> None:
        """Ends the process."""
        self.process.communicate()


def race(name: str, contestants: list[Contestant], rounds: int, seconds: float) -> dict[str, dict]:
    """Facts and the times of every round of one case, by contestant."""
    start = time.monotonic()
    for contestant in contestants:
        contestant.ask(f"case {name}")
    answers = {c.name: c.answer() for c in contestants}
    results = {n: {**facts, "wall": [], "cpu": []} for n, facts in answers.items() if facts}
    for turn in range(rounds + 1):
        if turn > 1 and time.monotonic() - start > seconds:
            break
        for contestant in contestants:
            result = results.get(contestant.name, {"failed": ""})
            if "failed" in result:
                continue
            contestant.ask("step")
            facts = contestant.answer()
            if "failed" in facts:
                result |= facts
                continue
            print(f"  {name} {turn} {contestant.name}: {facts['wall']:.2f} s", file=sys.stderr)
            if turn > 0:
                result["wall"].append(facts["wall"])
                result["cpu"].append(facts["cpu"])
                result["peak_gb"] = facts.get("peak_gb")
    return results


def compared(results: dict[str, dict]) -> None:
    """Adds medians, and ratios as medians of the per-round ratios."""
    peer = results.get(PEER, {})
    for result in results.values():
        if result["wall"]:
            result["step_s"] = statistics.median(result["wall"])
        for clock in ("wall", "cpu"):
            # One that failed on the way has fewer rounds.
            pairs = list(zip(peer.get(clock, ()), result[clock], strict=False))
            if pairs and result is not peer:
                result[f"ratio_{clock}"] = statistics.median(a / b for a, b in pairs)


def table(rows: list[dict]) -> list[str]:
    """The rows as Markdown."""
    lines = [
        "| case | network | parameters | forward GFLOP | step, s | peer / ours, wall | CPU time "
        "| peak GB |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        for name, result in row["results"].items():
            cells = [row["case"], name]
            if "parameters" in result:
                cells += [
                    f"{result['parameters'] / 1e6:.1f} M",
                    f"{result['forward_flop'] / 1e9:.0f}",
                ]
            else:
                cells += ["", ""]
            if "failed" in result:
                cells += [result["failed"], "", "", ""]
            else:
                keys = ("step_s", "ratio_wall", "ratio_cpu", "peak_gb")
                values = [result.get(key) for key in keys]
                if row["machine"]["device"] != "cpu":
                    values[2] = None  # the processor waits while the GPU works
                cells += ["" if v is None else f"{v:.3g}" for v in values]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


@functools.cache
def machine() -> dict[str, object]:
    """What the figures hold for."""
    cuda = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", nargs="*", default=[], metavar="NAME=PATH")
    parser.add_argument("--only", nargs="*", choices=WITH_NETWORK, default=list(WITH_NETWORK))
    parser.add_argument("--policy", nargs="*", choices=POLICIES, default=["plain"])
    parser.add_argument(
        "--smaller",
        type=int,
        default=1,
        metavar="F",
        help="states of F times fewer voxels an axis",
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="of a case; then no new round begins"
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for every case")
    parser.add_argument("--worker", choices=[PEER, *POLICIES], help=argparse.SUPPRESS)
    options = parser.parse_args()
    found = peers.checkouts(options.peer)
    if options.worker:
        work(options.worker, found, options.smaller)
        return
    command = [sys.executable, __file__, "--smaller", str(options.smaller)]
    command += ["--peer", *options.peer]
    rows, contestants = [], []
    for name in options.only:
        # On the CPU a process keeps the heap of a case; the next one starts afresh.
        if not torch.cuda.is_available() or not all(c.alive for c in contestants):
            for contestant in contestants:
                contestant.close()
            contestants = [Contestant(n, command) for n in (PEER, *options.policy)]
        results = race(name, contestants, options.rounds, options.seconds)
        compared(results)
        row = {"case": name, "smaller": options.smaller, "machine": machine(), "results": results}
        rows.append(row)
        if options.json:
            print(json.dumps(row), flush=True)
    for contestant in contestants:
        contestant.close()
    if not options.json:
        print("\n".join(table(rows)))


if __name__ == "__main__":
    main()
