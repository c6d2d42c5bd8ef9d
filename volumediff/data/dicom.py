r"""One DICOM series -> a volume in Hounsfield units (CT) or scanner units.

The world axes of DICOM point to L, P, S; in RAS

.. math:: A = \operatorname{diag}(-1, -1, 1, 1)\, A_\text{LPS}.

A series whose slices are not evenly spaced, parallel and complete has no affine: it is refused,
and so is one with a file that cannot be read, because nothing tells which slice that was.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.data.dicom_files.recognition import is_dicom
from volumediff.data.grid import Grid
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.remarks import Remark
from volumediff.data.stored import StoredVolume
from volumediff.errors import DataError

__all__ = ["read_series", "series_grid"]

# Seconds for any series, and seconds per megabyte of its files; JPEG 2000, the slowest, takes 0.2.
SECONDS, SECONDS_PER_MB = 60.0, 2.0
VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def read_series(folder: Path, policy: ReadPolicy) -> StoredVolume:
    """Reads the one series of a folder, or that which the policy names.

    Raises:
        DataError: no series, several, or one with missing, damaged, uneven or differing slices
    """
    with tempfile.TemporaryDirectory() as scratch:
        voxels = Path(scratch) / "voxels.npy"
        found = _in_child(folder, policy, voxels)
        raw = np.load(voxels)
    remarks = tuple(Remark(**remark) for remark in found["remarks"])
    return StoredVolume(raw[..., None], _grid(found), remarks)


def series_grid(folder: Path) -> Grid:
    """Where the voxels of a folder's one series lie, as `read_series` has it, from its headers.

    Raises:
        DataError: as `read_series`
    """
    return _grid(_in_child(folder, ReadPolicy(), None))


def _grid(found: dict[str, Any]) -> Grid:
    affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.array(found["affine"])
    # as NIfTI has it, so that results that are read back lie where they were computed
    return Grid(tuple(found["shape"]), affine.astype(np.float32).astype(np.float64))


def _in_child(folder: Path, policy: ReadPolicy, voxels: Path | None) -> dict[str, Any]:
    """Geometry and remarks of a series, which a process of its own reads."""
    if not folder.is_dir():
        raise DataError(f"{folder}: expected a folder with a DICOM series.")
    files = [path for path in folder.iterdir() if path.is_file()]
    if not any(map(is_dicom, files)):
        raise DataError(
            f"{folder}: expected a NIfTI file or a DICOM series, this folder has none."
        )
    seconds = SECONDS + SECONDS_PER_MB * sum(path.stat().st_size for path in files) / 1e6
    order = {
        "folder": str(folder.absolute()),
        "series": policy.series,
        "budget_bytes": policy.budget_bytes,
        "voxels": None if voxels is None else str(voxels),
    }
    try:
        done = subprocess.run(
            [sys.executable, "-m", "volumediff.data.dicom_files.child"],
            input=json.dumps(order),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env={**os.environ, **dict.fromkeys(VARIABLES, "1")},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DataError(
            f"{folder}: the DICOM series was not decoded within {seconds:.0f} s; a file of it is "
            "damaged. Export the series again."
        ) from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it was killed"])[-1]
        raise DataError(
            f"{folder}: the DICOM series could not be decoded within its bounds of memory "
            f"({last[:200]}); a file of it is damaged. Export the series again."
        )
    answer = json.loads(done.stdout.strip().rpartition("\n")[2])
    if "error" in answer:
        raise DataError(answer["error"].replace(order["folder"], str(folder)))
    return answer
