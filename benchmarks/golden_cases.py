"""The volumes of the golden record: ellipsoids with a core, some of them with a bright blob."""

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

__all__ = ["CASES", "SPACING_MM", "write_cases"]

SIZE, SPACING_MM = 16, 4.0


def phantom(seed: int, *, sick: bool) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid with a core, and the mask of a bright blob in it where it is sick."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, SIZE)] * 3, indexing="ij"))
    radius = np.sqrt(((axes - rng.normal(0, 0.05, (3, 1, 1, 1))) ** 2).sum(0))
    x = 100 * (radius < 0.9) + rng.uniform(60, 120) * (radius < 0.5)
    x = x * (1 + 0.05 * rng.standard_normal(x.shape)) * (radius < 0.9)
    centre = rng.uniform(-0.4, 0.4, (3, 1, 1, 1))
    lesion = (np.sqrt(((axes - centre) ** 2).sum(0)) < 0.25) & sick
    return (x + 150 * lesion).astype(np.float32), lesion.astype(np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    """Without compression, whose bytes are not ours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.diag([SPACING_MM] * 3 + [1.0])), path)


def write_cases(
    folder: Path,
    *,
    cases: int,
    first: int = 0,
    channels: Sequence[str] = ("T1w",),
    labels: bool = False,
) -> Path:
    """Healthy and sick volumes in turn, with ages and groups."""
    if (folder / "participants.tsv").is_file():
        return folder
    rows = ["participant_id\tage\tgroup"]
    for i in range(first, first + cases):
        sick = i % 2 == 0
        x, lesion = phantom(i, sick=sick)
        for k, channel in enumerate(channels):
            save(folder / f"sub-{i:02d}_{channel}.nii", x if k == 0 else 300 * (x > 0) - x)
        if labels:
            save(folder / f"sub-{i:02d}_label.nii", lesion)
        rows.append(f"sub-{i:02d}\t{20 + i}\t{'sick' if sick else 'healthy'}")
    (folder / "participants.tsv").write_text("\n".join(rows) + "\n")
    return folder


CASES = {
    "plain": {"cases": 16},
    "labelled": {"cases": 24, "labels": True},
    "two": {"cases": 16, "channels": ("FLAIR", "T2w")},
    "new": {"cases": 1, "first": 90},
    "new-two": {"cases": 1, "first": 90, "channels": ("FLAIR", "T2w")},
    "test": {"cases": 3, "first": 90},
    "truth": {"cases": 3, "first": 90, "labels": True},
}
