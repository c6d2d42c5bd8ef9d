"""Prepared folders in which the code blocks of a page run, drawn from keys.

    empty       nothing
    scan        sub-01_T1w.nii.gz: a head-sized volume with a lesion
    healthy     DATA/: twelve healthy subjects in BIDS, sub-02 to sub-13, with participants.tsv
    labelled    the same with a lesion in each subject, and its mask
    trained     healthy and scan, runs/brain: a run of a few steps on DATA, and PATIENTS/: three
                more subjects with lesions and masks

Subjects are those of `volumediff.data.population`, at 5 mm.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from volumediff.errors import UsageError

__all__ = ["WORKPLACES", "prepare"]

SEED = 11
SHAPE, SPACING_MM = (32, 40, 32), (5.0, 5.0, 5.0)
SUBJECTS = range(2, 14)
PATIENTS = range(21, 24)
LESION = "hyper"
# Files hold 1 to 1001 in the foreground and 0 outside, so that the mask survives in the file.
UNITS, OFFSET = 500.0, 1.0


def prepare(name: str, folder: Path) -> None:
    """Fills an empty folder.

    Raises:
        UsageError: no workplace has this name
    """
    if name not in WORKPLACES:
        raise UsageError(f"workplace {name!r}: expected one of {', '.join(WORKPLACES)}.")
    folder.mkdir(parents=True, exist_ok=True)
    WORKPLACES[name](folder)


def _empty(folder: Path) -> None:
    """Nothing."""


def _scan(folder: Path) -> None:
    _write_subject(folder / "sub-01_T1w.nii.gz", 1, lesion=True)


def _healthy(folder: Path) -> None:
    _write_bids(folder / "DATA", SUBJECTS, lesions=False)


def _labelled(folder: Path) -> None:
    _write_bids(folder / "DATA", SUBJECTS, lesions=True)


def _trained(folder: Path) -> None:
    from volumediff.settings.run_config import load_run_config
    from volumediff.training.loop import train

    _healthy(folder)
    _scan(folder)
    _write_bids(folder / "PATIENTS", PATIENTS, lesions=True)
    words = [
        f"data.root={folder / 'DATA'}",
        "data.preprocessing={spacing_mm: 10.0, shape: [16, 24, 16]}",
        "data.split={validation: 0.2, calibration: 0.5}",
        "network={name: unet, widths: [4, 8], blocks: 1, groups: 2}",
        "crop=null",
        "memory.dtype=float32",
        "optim.steps=4",
        "optim.warmup=1",
        "optim.batch_size=2",
        "validation={every: 4, volumes: 1, previews: 0}",
        f"output={folder / 'runs' / 'brain'}",
    ]
    train(load_run_config("patch_64", words))


WORKPLACES: dict[str, Callable[[Path], None]] = {
    "empty": _empty,
    "scan": _scan,
    "healthy": _healthy,
    "labelled": _labelled,
    "trained": _trained,
}


def _write_bids(root: Path, subjects: Iterable[int], *, lesions: bool) -> None:
    """A data set in BIDS: one T1w volume for each subject, ages and sexes in a table."""
    rows = ["participant_id\tage\tsex\tgroup"]
    for number in subjects:
        name = f"sub-{number:02d}"
        _write_subject(root / name / "anat" / f"{name}_T1w.nii.gz", number, lesion=lesions)
        sex, group = "MF"[number % 2], "patient" if lesions else "control"
        rows.append(f"{name}\t{20 + 3 * number}\t{sex}\t{group}")
    (root / "participants.tsv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    about = {"Name": "Simulated subjects", "BIDSVersion": "1.9.0"}
    (root / "dataset_description.json").write_text(json.dumps(about), encoding="utf-8")


def _write_subject(path: Path, number: int, *, lesion: bool) -> None:
    """A subject's volume, and with a lesion its mask beside it."""
    import numpy as np
    import torch

    from volumediff.data.anomalies import TEST, insert
    from volumediff.data.grid import Grid
    from volumediff.data.population import Population
    from volumediff.data.volume import write
    from volumediff.randomness import key

    population = Population(seed=SEED, shape=SHAPE, spacing_mm=SPACING_MM)
    subject, grid = population.subject(number), Grid(population.shape, population.affine)
    x, truth = subject.x, torch.zeros_like(subject.foreground)
    if lesion:
        x, truth = insert(
            x,
            subject.foreground,
            kind=LESION,
            key=key(SEED, "documentation", number),
            spacing_mm=SPACING_MM,
            family=TEST,
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = ((x + 1) * UNITS + OFFSET) * subject.foreground
    write(path, stored.numpy(), like=grid, kind="image")
    if lesion:
        mask = path.with_name(path.name.replace("_T1w", "_label-lesion_mask"))
        write(mask, truth.numpy().astype(np.uint8), like=grid, kind="label")
