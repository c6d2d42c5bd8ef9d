"""Processor time of what surrounds the network: reading and writing volumes, findings, folders.

    python benchmarks/files.py               # 256³
    python benchmarks/files.py --side 128
    python benchmarks/files.py --only discovery --files 10000

A smoothed random volume with an empty background, in three types; reading is raced against
nibabel's `get_fdata(dtype=float32)`, which looks neither at checksums nor at what is not finite.
Turns are taken in pairs. Seconds are the least of all rounds, ratios medians over pairs.
"""

import argparse
import gzip
import mmap
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage

from volumediff.data.check import Checking
from volumediff.data.grid import Grid
from volumediff.data.survey import survey_cases
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


def discovering(folder: Path, count: int) -> Iterator[str]:
    """Rows of a folder of so many files: half of them volumes of 4³, half their labels."""
    x, mask = np.random.default_rng(0).random((4, 4, 4), np.float32), np.zeros((4, 4, 4), np.uint8)
    mask[1:3, 1:3, 1] = 1
    image, label = (nib.Nifti1Image(array, np.eye(4)).to_bytes() for array in (x, mask))
    for index in range(count // 2):
        (folder / f"p{index:06d}_T1w.nii").write_bytes(image)
        (folder / f"p{index:06d}_mask.nii").write_bytes(label)
    found = []
    spent = seconds(lambda: found.extend(survey_cases(folder)))
    cases, problems = found
    assert (len(cases), len(problems)) == (count // 2, 0)
    yield f"discovery of {count} files | {spent:.2f} | "
    memory, lines = [], Checking(cases, problems).lines()

    def read_all() -> None:
        for number, _ in enumerate(lines):
            if number in (len(cases) // 10, len(cases)):
                memory.append(resident())

    checked = seconds(read_all)
    yield (
        f"check of {count} files | {checked:.1f} | resident {memory[0]:.0f} MB after a tenth, "
        f"{memory[-1]:.0f} MB at the end"
    )


def resident() -> float:
    """Memory of this process in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE / 1e6


PARTS: dict[str, Callable[[Path, argparse.Namespace], Iterable[str]]] = {
    "reading": lambda folder, o: reading(volume(o.side), folder, o.rounds),
    "writing": lambda folder, o: writing(volume(o.side), folder, o.rounds),
    "measuring": lambda folder, o: measuring(volume(o.side), o.rounds),
    "publishing": lambda folder, o: publishing(folder),
    "discovery": lambda folder, o: discovering(folder, o.files),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--only", choices=PARTS)
    options = parser.parse_args()
    print(f"| {options.side}³ | s | |\n|---|---|---|")
    for part in [options.only] if options.only else PARTS:
        with tempfile.TemporaryDirectory() as name:
            for row in PARTS[part](Path(name), options):
                print(f"| {row} |", flush=True)


if __name__ == "__main__":
    main()
