"""From another tool's checkpoint to a map at true size, by the program's own commands.

    python benchmarks/imported_walk.py WORK                  # 192 x 224 x 192 voxels of 1 mm
    python benchmarks/imported_walk.py WORK --shape 64 80 64 --spacing-mm 3

Weights are random, of MAISI's autoencoder (64, 128, 256 channels, 4 latents) and U-Net (180 M):
the walk shows time and memory, no finding means anything. The case is the MNI152 brain with a
bright sphere of 10 mm. Every command is a process of its own, whose time and peak of resident
memory are printed as one JSON line; what is in WORK already is not made again.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import peers
import safetensors.torch
import torch

from volumediff.data.alignment_template import mni152
from volumediff.data.volume import write

SPHERE_MM = 10.0
# One noise, one level, nothing calibrated: one call of the U-Net.
METHOD = (
    *("--method", "scan", "route.log_snrs=[-1.35]", "ensemble.seeds=1"),
    *("normalize=raw", "threshold=best", "post=[]", "--no-report"),
)


def make_weights(work: Path) -> None:
    """Random weights of MONAI's networks, as its trainers name them."""
    torch.manual_seed(0)
    networks = {"coder": peers.monai_autoencoder(maisi=True), "unet": peers.maisi_unet()}
    for name, network in networks.items():
        state = {n: t.float().contiguous() for n, t in network.state_dict().items()}
        safetensors.torch.save_file(state, work / f"{name}.safetensors")


def make_case(path: Path) -> None:
    """The brain of the template with a bright sphere in its right hemisphere."""
    template = mni152()
    x = np.where(template.object, template.x, 0).astype(np.float32)
    centre = np.argwhere(template.object).mean(0) + np.array([30.0, 0.0, 10.0])
    axes = np.stack(np.meshgrid(*[np.arange(n) for n in x.shape], indexing="ij"), axis=-1)
    inside = ((axes - centre) ** 2).sum(-1) < (SPHERE_MM / 2) ** 2
    x[inside] += x.max() / 2
    write(path, x[None], like=template.grid, kind="image")


def run(name: str, *words: object) -> str:
    """A command of the program: prints its cost, returns its output."""
    began = time.time()
    command = [sys.executable, "-m", "volumediff", *map(str, words)]
    with tempfile.TemporaryFile("w+") as out:
        process = subprocess.Popen(command, stdout=out)
        _, status, used = os.wait4(process.pid, 0)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        printed = out.read()
    facts = {
        "command": name,
        "exit": code,
        "seconds": round(time.time() - began, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime),
        "peak_gb": round(used.ru_maxrss * 1024 / 1e9, 2),
    }
    print(json.dumps(facts), flush=True)
    if code not in (0, 1):
        sys.exit(f"{' '.join(command)} ended with {code}")
    return printed


def plan(config: Path, vram: float) -> None:
    """Whether it fits a card by the planner, and under which policy."""
    words = ("plan", config, "--mode", "infer", "--vram", vram, "--json")
    found = json.loads(run(f"plan for {vram:g} GB", *words))
    keys = ("vram_gb", "fits", "card_gb", "peak_gb", "host_gb", "peak_stage", "policy")
    print(json.dumps({key: found[key] for key in keys}), flush=True)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("--shape", type=int, nargs=3, default=(192, 224, 192))
    parser.add_argument("--spacing-mm", type=float, default=1.0)
    parser.add_argument("--slab", type=int, default=16)
    options = parser.parse_args(words)
    work = options.work
    work.mkdir(parents=True, exist_ok=True)
    size = f"data.preprocessing.shape={list(options.shape)}"
    grid = (size, f"data.preprocessing.spacing_mm={options.spacing_mm}")
    if not (work / "unet.safetensors").is_file():
        make_weights(work)
    if not (work / "brain.nii.gz").is_file():
        make_case(work / "brain.nii.gz")
    coder, net = work / "coder", work / "run"
    if not coder.is_dir():
        file = work / "coder.safetensors"
        run("import autoencoder", "import", "monai_autoencoder", file, "-o", coder, *grid)
    if not net.is_dir():
        given = ("importer.head_size=32", f"space.autoencoder={coder}", *grid)
        run("import U-Net", "import", "monai_unet", work / "unet.safetensors", "-o", net, *given)
    for vram in (8.0, 24.0):
        plan(net / "config.yaml", vram)
    memory = ("--memory", f"slab={options.slab}", "--memory", "offload=true")
    out = work / "out"
    words = ("localize", work / "brain.nii.gz", "--run", net, "-o", out, "--overwrite")
    run("localize", *words, *METHOD, *memory)
    facts = json.loads((out / "brain_desc-anomaly_map.json").read_text())
    keys = ("network_calls", "seconds", "peak_memory_gb", "score")
    print(json.dumps({key: facts.get(key) for key in keys}), flush=True)


if __name__ == "__main__":
    main()
