"""One real training step and one whole-volume inference step at full size, with their peak memory.

    python benchmarks/full_size.py wavelet_256 latent_256

Runs the shipped configurations as they are, on a random volume of their own shape: encode, loss,
backward, AdamW; then encode, one prediction and decode of the whole volume. Each part runs in a
process of its own, so that its peak is its own. On a GPU the peak is CUDA's, else the process's.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch

from volumediff.condition import Condition
from volumediff.model import Batch
from volumediff.training.assemble import build_task, channels_of
from volumediff.training.prepare import crop_of
from volumediff.training.run_config import load_run_config

PARTS = ("train", "infer")


def peak_gb(device: torch.device) -> float:
    """Peak memory so far, in 10^9 bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def run(name: str, part: str, words: list[str]) -> dict[str, object]:
    """One part of one configuration, in this process."""
    config = load_run_config(name, words)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    before = peak_gb(device)
    task = build_task(config)
    model = task.module.to(device)
    generator = torch.Generator().manual_seed(0)
    shape = config.data.preprocessing.shape
    place = None
    if part == "train" and config.crop is not None:
        place = crop_of(model.space, config.crop).coordinates(shape, 0)[None].to(device)
        shape = config.crop
    x = torch.rand((1, channels_of(config), *shape), generator=generator).to(device) * 2 - 1
    start = time.monotonic()
    if part == "train":
        optimizer = torch.optim.AdamW(model.network.parameters(), lr=1e-4)
        loss = model.loss(Batch(x, (0,), Condition(coordinates=place))).mean()
        loss.backward()
        optimizer.step()
        result = float(loss)
    else:
        with torch.no_grad():
            z = model.encode(x)
            t = torch.tensor([0.6], device=device)
            x0 = model.denoise(z, t, Condition()).x0
            result = float(model.decode(x0, tuple(shape)).square().mean())
    return {
        "config": name,
        "part": part,
        "shape": list(shape),
        "parameters": sum(p.numel() for p in model.network.parameters()),
        "seconds": time.monotonic() - start,
        "peak_gb": peak_gb(device),
        "start_gb": before,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "result": result,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--worker", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", dest="words")
    args = parser.parse_args()
    if args.worker:
        print(json.dumps(run(args.configs[0], args.worker, args.words)))
        return
    print("| configuration | part | voxels | M parameters | s | peak GB | before GB |")
    print("|---|---|---|---|---|---|---|")
    for name in args.configs:
        for part in args.parts:
            command = [sys.executable, __file__, name, "--worker", part, "--set", *args.words]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                print(f"| {name} | {part} | failed: {done.stderr.splitlines()[-1:]} |")
                continue
            row = json.loads(done.stdout.splitlines()[-1])
            cells = [
                name,
                part,
                "×".join(str(n) for n in row["shape"]),
                f"{row['parameters'] / 1e6:.1f}",
                f"{row['seconds']:.0f}",
                f"{row['peak_gb']:.1f}",
                f"{row['start_gb']:.1f}",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
