"""DICOM series against dcm2niix, and series with one damaged member.

    python benchmarks/dicom.py ROOT [ROOT ...]       # pip install dcm2niix
    python benchmarks/dicom.py ROOT --damaged 300

Every folder below a root that holds no folder is one series. Without `--damaged` the voxels and
affines are compared with what dcm2niix writes. With it, one member of a series is cut, emptied,
overwritten or has one bit flipped, at random, so many times; each result is `refused`, `told` (a
remark), `equal` to the intact volume, or `silent`. Bits of uncompressed pixels carry no checksum
and are left alone.
"""

import argparse
import shutil
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np

from volumediff.data.volume import read
from volumediff.errors import DataError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("roots", nargs="+", type=Path)
    parser.add_argument("--damaged", type=int, default=0)
    given = parser.parse_args()
    series = [folder for root in given.roots for folder in leaves(root)]
    for folder in series:
        if given.damaged:
            print(folder, dict(damaged(folder, given.damaged)))
        else:
            print(folder, compared(folder))


def leaves(root: Path) -> list[Path]:
    """Folders with files alone."""
    folders = [root, *sorted(p for p in root.rglob("*") if p.is_dir())]
    return [f for f in folders if any(f.iterdir()) and not any(p.is_dir() for p in f.iterdir())]


def compared(folder: Path) -> str:
    """Largest differences of voxels and of the affine, for every volume that dcm2niix writes."""
    with tempfile.TemporaryDirectory() as out:
        command = ["dcm2niix", "-b", "n", "-z", "n", "-f", "%s", "-o", out, str(folder)]
        subprocess.run(command, capture_output=True, check=False)
        theirs = [nib.as_closest_canonical(nib.load(p)) for p in sorted(Path(out).glob("*.nii"))]
        try:
            ours = read(folder)
        except DataError as error:
            return f"refused, dcm2niix wrote {len(theirs)}: {error}"
        parts = [", ".join(remark.code for remark in ours.findings)]
        for image in theirs:
            array = image.get_fdata()
            if array.shape != ours.array.shape[1:]:
                parts.append(f"{array.shape} there, {ours.array.shape[1:]} here")
                continue
            voxels = np.abs(array - ours.array[0])
            affine = np.abs(image.affine - ours.affine).max()
            parts.append(f"voxels {voxels.max():.3g} (mean {voxels.mean():.3g}), mm {affine:.3g}")
        return "; ".join(filter(None, parts))


def damaged(folder: Path, count: int) -> Counter:
    """How many damaged series came out how."""
    rng = np.random.default_rng(0)
    found: Counter = Counter()
    with tempfile.TemporaryDirectory() as work:
        copy = Path(shutil.copytree(folder, Path(work) / folder.name))
        intact = read(copy)
        members = sorted(path for path in copy.iterdir() if path.is_file())
        for _ in range(count):
            path = members[rng.integers(len(members))]
            content = path.read_bytes()
            path.write_bytes(harmed(content, rng))
            try:
                volume = read(copy)
            except DataError as error:
                found["refused" if path.name in str(error) else "refused without a name"] += 1
            else:
                same = volume.array.shape == intact.array.shape
                same = same and np.array_equal(volume.array, intact.array)
                same = same and np.allclose(volume.affine, intact.affine, atol=1e-3)
                told = volume.findings != intact.findings
                found["equal" if same else "told" if told else "silent"] += 1
            path.write_bytes(content)
    return found


def harmed(content: bytes, rng: np.random.Generator) -> bytes:
    """The bytes of a file after one accident; those of its pixels are cut, but not changed."""
    pixels = content.rfind(b"\xe0\x7f\x10\x00")
    header = pixels if pixels > 200 else len(content) // 2
    damaged = bytearray(content)
    match rng.integers(5):
        case 0:
            return content[: rng.integers(1, len(content) - 1)]
        case 1:
            return b""
        case 2:
            damaged[rng.integers(132, header)] ^= 1 << rng.integers(8)
        case 3:
            start = rng.integers(132, header - 8)
            damaged[start : start + 8] = rng.bytes(8)
        case _:
            start = rng.integers(128, header - 32)
            damaged[start : start + 32] = bytes(32)
    return bytes(damaged)


if __name__ == "__main__":
    main()
