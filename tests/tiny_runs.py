"""Tiny healthy phantoms on the disk and tiny configurations, for the tests of training."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np

from volumediff.config import overridden
from volumediff.optimization.metrics_file import read_metrics
from volumediff.settings.bound_files import bound_of
from volumediff.settings.run_config import RunConfig, parse
from volumediff.storage import folder
from volumediff.tasks import load_task

SIZE = (8, 8, 8)


def phantom(seed, size=SIZE):
    """An ellipsoid with a core; intensities and position vary with the seed."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij"))
    radius = np.sqrt(((axes - rng.normal(0, 0.05, (3, 1, 1, 1))) ** 2).sum(0))
    x = 100 * (radius < 0.9) + rng.uniform(60, 120) * (radius < 0.5)
    return (x * (1 + 0.05 * rng.standard_normal(size)) * (radius < 0.9)).astype(np.float32)


def write_data(root: Path, *, cases=6, size=SIZE, labels=False) -> Path:
    """A plain folder of cases, one image each, with ages and sexes in participants.tsv."""
    root.mkdir(parents=True, exist_ok=True)
    rows = ["participant_id\tage\tgroup"]
    for i in range(cases):
        image = phantom(i, size)
        name = f"sub-{i:02d}"
        nib.save(nib.Nifti1Image(image, np.diag([3.0, 3, 3, 1])), root / f"{name}_T1w.nii.gz")
        if labels:
            label = (image > 150).astype(np.uint8)
            nib.save(
                nib.Nifti1Image(label, np.diag([3.0, 3, 3, 1])), root / f"{name}_label.nii.gz"
            )
        rows.append(f"{name}\t{20 + 3 * i}\t{'control' if i % 2 else 'patient'}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n")
    return root


def tiny(root: Path, output: Path, *words: str) -> RunConfig:
    """A run of a few seconds, in voxel space if it is one of diffusion; `words` are overrides."""
    tree = {
        "data": {
            "root": str(root),
            "preprocessing": {"shape": list(SIZE)},
            "split": {"validation": 0.2, "calibration": 0.0},
        },
        "optim": {"lr": 1e-3, "steps": 6, "warmup": 2, "batch_size": 2, "ema": 0.9},
        "validation": {"every": 3, "volumes": 1},
        "save_every": 2,
        "output": str(output),
    }
    if not any(word.startswith("task=") for word in words):
        tree |= {
            "space": "voxel",
            "kernel": {"name": "gaussian", "schedule": "cosine"},
            "network": {"name": "unet", "widths": [4, 8], "blocks": 1, "groups": 2},
        }
    return parse(overridden(tree, words))


def load_run(run: Path, **which):
    """Configuration and trained module of a run."""
    task = load_task(run, **which)
    return task.config, task.module


def figures(run: Path) -> list[dict]:
    """The metrics of a run without the durations, which nothing decides."""
    rows = read_metrics(run / "metrics.jsonl")
    assert all(row["seconds"] > 0 for row in rows if "loss" in row)
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def rebind(run: Path) -> Path:
    """Binds the checkpoints of a run to its files as they are now, to reach later checks."""
    bound = bound_of(run).model_dump()
    for path in list((run / "checkpoints").iterdir()):
        files = {p.name: p.read_bytes() for p in path.iterdir() if p.name != folder.MANIFEST}
        state = {**json.loads(files["state.json"]), "bound": bound}
        folder.discard(path)
        folder.publish(path, {**files, "state.json": json.dumps(state).encode()})
    return run
