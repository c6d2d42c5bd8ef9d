"""Time of a training step of the WDM-128 network, ours against the peer's own code.

    python benchmarks/throughput.py                      # ours alone
    python benchmarks/throughput.py --peer CHECKOUT      # paired with pfriedri/wdm-3d
    python benchmarks/throughput.py --size small         # a quick check, 16³ states

The network: 64 base channels, multipliers 1, 2, 2, 4, 4, additive skips, 8 channels in and out, a
state of 64³ (the Haar coefficients of a 128³ volume), batch 1. A step is forward, mean squared
error, backward and Adam. Every contestant lives in a process of its own, and they take steps in
turn, so that other load on the machine meets all of them; the first step of each is discarded. The
ratio is the median over rounds of the peer's time by ours.

`unet` has the peer's two residual blocks per level on both sides of the U, `unet-1` one on each
side. The table states parameters and floating point operations, because the peer's decoder has a
third block per level and its resampling is done by residual blocks of their own.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

SIDES = {"small": 16, "full": 64}
# contestant -> (blocks per level and side, dtype)
OURS = {
    "unet fp32": (2, "float32"),
    "unet bf16": (2, "bfloat16"),
    "unet-1 bf16": (1, "bfloat16"),
}


def peer_network(checkout: Path) -> nn.Module:
    """The peer's network through its own `create_model`, with the settings of its run.sh."""
    sys.path.insert(0, str(checkout))
    # Logging and plotting packages that the model does not need are replaced where missing.
    sys.modules["torch.utils.tensorboard"] = MagicMock()
    while True:
        try:
            from guided_diffusion.script_util import create_model
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith(("guided_diffusion", "DWT_IDWT")):
                raise SystemExit(
                    f"{checkout} is no checkout of pfriedri/wdm-3d: {error}"
                ) from None
            sys.modules[error.name] = MagicMock()
            for name in [n for n in sys.modules if n.startswith("guided_diffusion")]:
                del sys.modules[name]
        else:
            break
    return create_model(
        image_size=128,
        num_channels=64,
        num_res_blocks=2,
        channel_mult="1,2,2,4,4",
        attention_resolutions="",
        num_heads=1,
        use_scale_shift_norm=False,
        num_groups=32,
        dims=3,
        in_channels=8,
        out_channels=8,
        bottleneck_attention=False,
        resample_2d=False,
        additive_skips=True,
    )


def our_network(blocks: int) -> nn.Module:
    """The U-Net of the same widths."""
    from volumediff.networks.unet import UNet

    return UNet(8, 8, widths=(64, 128, 128, 256, 256), blocks=blocks, embedding="additive")


def contestant(name: str, checkout: Path | None, side: int) -> tuple[Callable[[], None], dict]:
    """A function that takes one step, and the facts about its network."""
    torch.manual_seed(0)
    z = torch.randn(1, 8, side, side, side)
    facts = {}
    if name == "peer fp32":
        with torch.device("meta"):
            shadow = peer_network(checkout)
        shadow.to(torch.device("meta"))
        network = peer_network(checkout)
        network.to(torch.device("cpu"))
        t = torch.tensor([500.0])
        policy = None
    else:
        from volumediff.memory.policy import MemoryPolicy, retain_heap

        blocks, dtype = OURS[name]
        with torch.device("meta"):
            shadow = our_network(blocks)
        network = our_network(blocks)
        policy = MemoryPolicy(dtype=dtype, channels_last=True)
        policy.apply(network)
        facts["retained_heap"] = retain_heap()
        t = torch.tensor([0.5])
    with FlopCounterMode(display=False) as counter:
        shadow(z.to("meta"), t.to("meta"))
    facts["parameters"] = sum(p.numel() for p in network.parameters())
    facts["forward_flop"] = counter.get_total_flops()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        output: Tensor = network(z if policy is None else z.to(policy.torch_dtype), t)
        loss = (output.float() - z).square().mean()
        loss.backward()
        optimizer.step()

    return step, facts


def work(name: str, checkout: Path | None, side: int) -> None:
    """The contestant's process: one step per line of input, its times as a line of output."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a network prints goes to the error stream
    step, facts = contestant(name, checkout, side)
    replies.write(json.dumps(facts) + "\n")
    replies.flush()
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        seconds = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        replies.write(json.dumps(seconds) + "\n")
        replies.flush()


def race(names: list[str], checkout: Path | None, size: str, rounds: int) -> dict[str, dict]:
    """Facts and the times of every round, per contestant."""
    processes, results = {}, {}
    for name in names:
        command = [sys.executable, __file__, "--worker", name, "--size", size]
        if checkout:
            command += ["--peer", str(checkout)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        line = process.stdout.readline()
        if not line:
            raise SystemExit(f"{name} could not be set up; its messages are above")
        processes[name], results[name] = process, {**json.loads(line), "wall": [], "cpu": []}
    for turn in range(rounds + 1):
        for name, process in processes.items():
            process.stdin.write("step\n")
            process.stdin.flush()
            seconds = json.loads(process.stdout.readline())
            if turn > 0:
                results[name]["wall"].append(seconds["wall"])
                results[name]["cpu"].append(seconds["cpu"])
            print(f"  round {turn} {name}: {seconds['wall']:.2f} s", file=sys.stderr)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return results


def report(results: dict[str, dict]) -> list[str]:
    """The table; ratios are medians of the per-round ratios."""
    peer = results.get("peer fp32")
    lines = [
        "| network | parameters | forward GFLOP | step, s | peer / ours, wall | CPU time |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        ratios = {"wall": "-", "cpu": "-"}
        if peer and result is not peer:
            for clock in ratios:
                pairs = zip(peer[clock], result[clock], strict=True)
                result[f"ratio_{clock}"] = statistics.median(a / b for a, b in pairs)
                ratios[clock] = f"{result[f'ratio_{clock}']:.2f}"
        lines.append(
            f"| {name} | {result['parameters'] / 1e6:.1f} M | {result['forward_flop'] / 1e9:.0f} "
            f"| {statistics.median(result['wall']):.2f} | {ratios['wall']} | {ratios['cpu']} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", type=Path, help="checkout of pfriedri/wdm-3d")
    parser.add_argument("--size", choices=SIDES, default="full")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=OURS, default=list(OURS))
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.peer, SIDES[options.size])
        return
    names = (["peer fp32"] if options.peer else []) + options.only
    results = race(names, options.peer, options.size, options.rounds)
    print("\n".join(report(results)))
    if options.json:
        machine = {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "capability": torch.backends.cpu.get_cpu_capability(),
            "size": options.size,
        }
        options.json.write_text(json.dumps({"machine": machine, "results": results}, indent=2))


if __name__ == "__main__":
    main()
