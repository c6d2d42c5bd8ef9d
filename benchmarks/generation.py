"""Measures of generated volumes where the answer is known: real volumes, changed ones, copies.

    python benchmarks/generation.py DATA --out OUT [--side 48]

Real volumes stand for generated ones: other patients (the floor of every measure), the same ones
blurred, noisy, or few of them many times, and copies of training volumes, changed in many ways.
Volumes are reduced to SIDE voxels along the longest axis by means over blocks.
"""

import argparse
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
import torch.nn.functional as F

import volumediff
from volumediff.metrics.bootstrap import Interval
from volumediff.randomness import generator

CHANGES = {
    "as it is": lambda x: x,
    "noise of 5 % of the range": lambda x: x + 0.1 * torch.randn(x.shape, generator=DRAW),
    "mean over 3 voxels": lambda x: F.avg_pool3d(x[None], 3, 1, 1)[0],
    "0.8 of the intensity": lambda x: 0.8 * (x + 1) - 1,
    "mirrored left to right": lambda x: x.flip(0),
    "shifted by a voxel along all axes": lambda x: x.roll((1, 1, 1), (0, 1, 2)),
    "shifted, mean over 3, noise, 0.9": lambda x: (
        0.9 * (F.avg_pool3d(x.roll(1, 0)[None], 3, 1, 1)[0] + 1)
        - 1
        + 0.05 * torch.randn(x.shape, generator=DRAW)
    ),
}
DRAW = generator("benchmarks", "generation")
SHOWN = ("mmd", "ms_ssim", "high_frequency", "intensity_distance", "foreground_ml")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--side", type=int, default=48)
    given = parser.parse_args()
    files = sorted(given.data.glob("*_T1w.nii.gz"))
    order = np.random.default_rng(0).permutation(len(files))
    training, held, new = np.array_split(order, 3)
    for part, chosen in (("training", training), ("real", held)):
        for i in chosen:
            save(given.out / part, files[i].name, small(files[i], given.side))
    sets = {
        "other patients": [small(files[i], given.side) for i in new],
        "blurred": [F.avg_pool3d(small(files[i], given.side)[None], 3, 1, 1)[0] for i in new],
        "noisy": [
            x + 0.1 * torch.randn(x.shape, generator=DRAW)
            for x in (small(files[i], given.side) for i in new)
        ],
        "two, many times": [
            x + 0.02 * torch.randn(x.shape, generator=DRAW)
            for x in (small(files[i], given.side) for i in np.resize(new[:2], len(new)))
        ],
        "copies": [
            change(small(files[training[i]], given.side))
            for i, change in enumerate(CHANGES.values())
        ],
    }
    for name, volumes in sets.items():
        for i, x in enumerate(volumes):
            save(given.out / name, f"sample-{i:04d}_image.nii.gz", x)
    found = volumediff.evaluate(
        [given.out / name for name in sets],
        real=given.out / "real",
        training=given.out / "training",
        output=given.out,
        html=True,
    )
    print("| | " + " | ".join(SHOWN) + " | flagged |")
    for result in found:
        cells = [cell(result.measures[name].generated) for name in SHOWN]
        p = f"p {result.measures['mmd'].p:.3f}"
        flagged = f"{len(result.copies)} of {result.generated}"
        print(f"| {result.method} | {cells[0]}, {p} | {' | '.join(cells[1:])} | {flagged} |")
    cells = [cell(found[0].measures[name].real) for name in SHOWN]
    print(f"| real | {' | '.join(cells)} | |")
    near = found[-1].memorization["voxels"].samples
    values = {name: f"{s.p:.1e}" for name, s in zip(CHANGES, near, strict=True)}
    print(json.dumps(values, indent=1))


def small(file: Path, side: int) -> torch.Tensor:
    x = torch.from_numpy(nib.load(file).get_fdata(dtype=np.float32))
    size = [round(n * side / max(x.shape)) for n in x.shape]
    return 2 * F.adaptive_avg_pool3d(x[None] / x.max(), size)[0] - 1


def save(folder: Path, name: str, x: torch.Tensor) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(x.numpy(), np.diag([4.0, 4, 4, 1])), folder / name)


def cell(interval: Interval) -> str:
    text = f"{interval.value:.3g}"
    if np.isfinite(interval.low):
        text += f" ({interval.low:.3g} to {interval.high:.3g})"
    return text


if __name__ == "__main__":
    main()
