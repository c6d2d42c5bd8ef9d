"""An adapter against training all weights further: loss, file, planned memory; and samples.

    python benchmarks/adapters.py DATA --out OUT [--steps 60] [--base 200]

A small diffusion model learns volumes of half of the patients. Training goes on with the other
half, whose intensities have a gamma of 2 as if from another scanner: with all weights, with LoRA
of rank 8 and 2, and from the start. The validation loss is of the other half. Samples of the first
model are compared with its own volumes.
"""

import argparse
from pathlib import Path

import nibabel as nib
import numpy as np

import volumediff
from volumediff.optimization.metrics_file import read_metrics

CONFIG = {
    "space": "voxel",
    "kernel": {"name": "gaussian", "schedule": "cosine", "prediction": "v"},
    "network": {"name": "unet", "widths": [16, 32, 32], "blocks": 1, "groups": 4},
    "data": {
        "preprocessing": {"spacing_mm": 6.0, "shape": [32, 40, 32]},
        "split": {"validation": 0.25, "calibration": 0.0},
    },
    "optim": {"lr": 1e-3, "warmup": 20, "batch_size": 2, "ema": 0.95},
    "validation": {"volumes": 8},
    "save_every": 1000,
}
WAYS = {
    "all weights": lambda base: {"start_from": str(base)},
    "LoRA, rank 8": lambda base: {"start_from": str(base), "adapter": {"name": "lora", "rank": 8}},
    "LoRA, rank 2": lambda base: {"start_from": str(base), "adapter": {"name": "lora", "rank": 2}},
    "from the start": lambda base: {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--base", type=int, default=200)
    given = parser.parse_args()
    files = sorted(given.data.glob("*_T1w.nii.gz"))
    for i, file in enumerate(files):
        image = nib.load(file)
        x = image.get_fdata(dtype=np.float32)
        gamma = 1 if i % 2 == 0 else 2
        folder = given.out / ("first" if i % 2 == 0 else "second")
        folder.mkdir(parents=True, exist_ok=True)
        x = (x / x.max()) ** gamma
        nib.save(nib.Nifti1Image(x.astype(np.float32), image.affine), folder / file.name)
    base = volumediff.train(
        CONFIG,
        data={**CONFIG["data"], "root": str(given.out / "first")},
        output=given.out / "base",
        optim={**CONFIG["optim"], "steps": given.base},
        validation={**CONFIG["validation"], "every": given.base},
    )
    print("| way | validation loss after steps | MB of the best checkpoint | planned GB |")
    for name, way in WAYS.items():
        sections = {
            **way(base),
            "optim": {**CONFIG["optim"], "steps": given.steps},
            "validation": {**CONFIG["validation"], "every": given.steps // 4},
        }
        data = {**CONFIG["data"], "root": str(given.out / "second")}
        run = volumediff.train(
            CONFIG, data=data, output=given.out / name.replace(" ", "_"), **sections
        )
        rows = [r for r in read_metrics(run / "metrics.jsonl") if "validation_loss" in r]
        losses = ", ".join(f"{r['step']}: {r['validation_loss']:.3f}" for r in rows)
        files = (run / "checkpoints").glob("best-*/ema.safetensors")
        size = sum(file.stat().st_size for file in files) / 1e6
        memory = volumediff.plan({**CONFIG, "data": data}, **sections).chosen.peak_gb
        print(f"| {name} | {losses} | {size:.3f} | {memory:.4f} |", flush=True)
    samples = given.out / "samples"
    volumediff.sample_files(volumediff.load(base), samples, 12, overrides=["sampler.steps=12"])
    (found,) = volumediff.evaluate(
        samples, real=given.out / "first", run=base, features=base, output=samples, html=True
    )
    for name, c in found.measures.items():
        print(f"{name}: {c.generated.value:.3g}, real {c.real.value:.3g}, p {c.p:.3g}")
    for note in found.notes:
        print(note)
    print(f"{len(found.copies)} of {found.generated} samples are flagged")


if __name__ == "__main__":
    main()
