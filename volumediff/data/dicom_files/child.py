"""The process that parses and decodes one series: `python -m volumediff.data.dicom_files.child`.

It reads one JSON object with `folder`, `series`, `budget_bytes` and `voxels` (where to write
them, or null) from its input, and writes one with the volume's `shape`, `affine` (L, P, S) and
`remarks`, or the `error`. A damaged file can make a decoder ask for any amount of memory; here
that ends this process and not the one that asked.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from volumediff.data.dicom_files.geometry import Geometry, geometry_of
from volumediff.data.dicom_files.headers import frames_of_series
from volumediff.data.dicom_files.pixels import voxels_of
from volumediff.data.read_policy import remedy
from volumediff.errors import DataError
from volumediff.system.resources import limit_memory

__all__ = ["main"]

# Address space beside the voxels: libraries, the parsed headers of a series, one decoded file.
SPACE_BYTES = 3 * 2**30


def main() -> None:
    """Answers the one order on the standard input."""
    order = json.loads(sys.stdin.read())
    try:
        answer = _answer(order)
    except DataError as error:
        answer = {"error": str(error)}
    # a line of its own, whatever a decoder has written before
    sys.stdout.write("\n" + json.dumps(answer))


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    folder = Path(order["folder"])
    limit_memory(SPACE_BYTES)
    series = frames_of_series(folder, order["series"])
    geometry = geometry_of(series.frames, folder)
    _check_budget(geometry, folder, order["budget_bytes"])
    limit_memory(SPACE_BYTES + 3 * 4 * int(np.prod(geometry.shape)))
    if order["voxels"] is not None:
        np.save(order["voxels"], voxels_of(geometry))
    return {
        "shape": geometry.shape,
        "affine": geometry.affine.tolist(),
        "remarks": [vars(remark) for remark in (*series.remarks, *geometry.remarks)],
    }


def _check_budget(geometry: Geometry, folder: Path, budget_bytes: int) -> None:
    need = 4 * int(np.prod(geometry.shape))
    if need > budget_bytes:
        raise DataError(
            f"{folder}: the series needs {need / 2**30:.3g} GiB, more than the budget of "
            f"{budget_bytes / 2**30:.3g} GiB; {remedy(f'budget_bytes={need}')}."
        )


if __name__ == "__main__":
    main()
