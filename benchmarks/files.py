"""Processor time of what surrounds the network: reading and writing volumes, findings, folders.

    python benchmarks/files.py               # 256³
    python benchmarks/files.py --side 128

A smoothed random volume with an empty background, in three types; reading is raced against
nibabel's `get_fdata(dtype=float32)`, which looks neither at checksums nor at what is not finite.
Turns are taken in pairs. Seconds are the least of all rounds, ratios medians over pairs.
"""

import argparse
import gzip
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from volumediff.data.grid import Grid
from volumediff.data.volume import read, write
from volumediff.outputs.export import findings_of
from volumediff.storage.folder import publish, verify
from volumediff.storage.tensors import stream


def seconds(work: Callable[[], object]) -> float:
    """Processor time of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def volume(side: int) -> np.ndarray:
    """A smooth float32 volume with some noise, zero in about half of its voxels."""
    rng = np.random.default_rng(0)
    coarse = ndimage.gaussian_filter(rng.standard_normal((side // 4,) * 3), 1)
    smooth = ndimage.zoom(coarse, 4, order=1)
    noise = 10 * rng.standard_normal(smooth.shape)
    return np.where(smooth > 0, 1000 * smooth + noise, 0).clip(0).astype(np.float32)


def reading(x: np.ndarray, folder: Path, rounds: int) -> list[str]:
    """Rows of the stored types."""
    rows = []
    for dtype in (np.uint8, np.int16, np.float32):
        path = folder / f"{np.dtype(dtype).name}.nii.gz"
        nib.save(nib.Nifti1Image((x / x.max() * 255).astype(dtype), np.eye(4)), path)
        pairs = [
            (
                seconds(partial(read, path)),
                seconds(lambda path=path: nib.load(path).get_fdata(dtype=np.float32)),
            )
            for _ in range(rounds)
        ]
        ours, theirs = (min(column) for column in zip(*pairs, strict=True))
        ratio = statistics.median(a / b for a, b in pairs)
        rows.append(f"read {path.name} | {ours:.3f} | nibabel {theirs:.3f}, ratio {ratio:.2f}")
    return rows


def writing(x: np.ndarray, folder: Path, rounds: int) -> list[str]:
    """Rows of ISA-L's first level and zlib's sixth, of a map and a mask."""
    rows, grid = [], Grid(x.shape, np.eye(4))
    for kind, array in (("image", x), ("label", (x > 300).astype(np.uint8))):
        path, old = folder / f"{kind}.nii.gz", folder / "old.gz"
        save = partial(write, path, array, like=grid, kind=kind)
        ours = min(seconds(save) for _ in range(rounds))
        compressed = partial(gzip.compress, gzip.decompress(path.read_bytes()), 6)
        zlib = seconds(compressed)
        old.write_bytes(compressed())
        sizes = [p.stat().st_size / 1e6 for p in (path, old)]
        rows.append(
            f"write {kind} | {ours:.3f}, {sizes[0]:.2f} MB | zlib 6 alone {zlib:.3f}, "
            f"{sizes[1]:.2f} MB"
        )
    return rows


def measuring(x: np.ndarray, rounds: int) -> list[str]:
    """The row of findings."""
    mask = x > np.quantile(x, 0.995)
    found = min(
        seconds(lambda: findings_of(mask[None], x[None], affine=np.eye(4))) for _ in range(rounds)
    )
    return [f"findings of {int(mask.sum())} marked voxels | {found:.3f} | "]


def publishing(folder: Path) -> list[str]:
    """The row of a folder of 1.3 GB, as a checkpoint is written and verified."""
    tensors = {f"{i}": torch.randn(1024, 1024) for i in range(80)}
    files = {f"{n}.safetensors": lambda file: stream(file, tensors) for n in range(4)}
    written = seconds(lambda: publish(folder / "published", files))
    verified = seconds(lambda: verify(folder / "published"))
    return [f"checkpoint of 1.34 GB | {written:.2f} | verified {verified:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    x = volume(options.side)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = [
            *reading(x, folder, options.rounds),
            *writing(x, folder, options.rounds),
            *measuring(x, options.rounds),
            *publishing(folder),
        ]
    print(f"| {options.side}³ | s | |\n|---|---|---|")
    print("\n".join(f"| {row} |" for row in rows))


if __name__ == "__main__":
    main()
