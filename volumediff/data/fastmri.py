r"""fastMRI volumes: HDF5 files with reconstructed slices and an ISMRMRD header.

The slices `reconstruction_rss` (s, r, c) are upside down: with their rows reversed they look as on
a workstation (fastMRI+, README). The files do not say how the patient lies, so that it is taken
from the name of the acquisition: the axes c, r, s of axial ones (AX...) run to L, A and S, and
those of coronal ones (COR...) to L, S and A. The spacing is field of view over matrix size of the
header's reconstruction space.

References:
    Zbontar et al. (2018), fastMRI: An Open Dataset and Benchmarks for Accelerated MRI,
    arXiv:1811.08839
    Zhao et al. (2022), fastMRI+, Clinical pathology annotations for knee and brain fully sampled
    magnetic resonance imaging data, arXiv:2109.03812
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from volumediff.data.grid import Grid
from volumediff.data.read_policy import ReadPolicy, remedy
from volumediff.data.remarks import Remark
from volumediff.data.stored import StoredVolume
from volumediff.data.stream import open_regular
from volumediff.errors import DataError
from volumediff.extras import optional

__all__ = ["SLICES", "Description", "describe", "read_stored"]

SLICES = "reconstruction_rss"
HEADER = "ismrmrd_header"
# Directions of the columns, rows and slices of the stored array, by the start of the acquisition.
DIRECTIONS = {
    "AX": np.array([[-1.0, 0, 0], [0, 1, 0], [0, 0, 1]]),
    "COR": np.array([[-1.0, 0, 0], [0, 0, 1], [0, 1, 0]]),
}


@dataclass(frozen=True, eq=False)
class Description:
    """What a file says about itself, without its voxels.

    Arguments:
        acquisition: such as AXFLAIR or CORPD_FBK
        patient: the data set's code of the patient, if the file has one
        grid: axes columns, rows (as stored), slices; None for k-space without a reconstruction
        measured: whether the spacing is from the header; else it is 1 mm
    """

    acquisition: str
    patient: str | None
    grid: Grid | None
    measured: bool


def describe(path: Path) -> Description:
    """Reads attributes and header.

    Raises:
        DataError: no HDF5 file, or an acquisition that is neither axial nor coronal
        UsageError: h5py is not installed
    """
    with _opened(path) as file:
        return _description(file, path)


def read_stored(path: Path, policy: ReadPolicy) -> StoredVolume:
    """Reads the reconstructed slices of a file.

    Raises:
        DataError: no HDF5 file, no reconstruction, or one that is damaged
        UsageError: h5py is not installed
    """
    with _opened(path) as file:
        described = _description(file, path)
        if described.grid is None:
            raise DataError(f"{path}: expected the data set '{SLICES}'; reconstruct it first.")
        need = 4 * prod(described.grid.shape)
        if need > policy.budget_bytes:
            raise DataError(
                f"{path}: the slices need {need / 2**30:.3g} GiB, more than the budget; "
                f"{remedy(f'budget_bytes={need}')}."
            )
        try:
            slices = np.asarray(file[SLICES][()])
        except OSError as error:
            raise DataError(f"{path}: '{SLICES}' is damaged ({error}); copy it again.") from error
    where = "axial" if described.acquisition.startswith("AX") else "coronal"
    text = f"directions assumed as for {where} slices: fastMRI does not store them"
    findings = [Remark("info", "directions_assumed", text)]
    if not described.measured:
        text = "no field of view in the header: 1 mm assumed"
        findings.append(Remark("warning", "spacing_assumed", text))
    raw = np.transpose(slices, (2, 1, 0))[..., None]
    return StoredVolume(raw, described.grid, tuple(findings))


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    h5py = optional("h5py", purpose=f"{path}: reading HDF5")
    with open_regular(path):
        pass  # a pipe would block the library
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: expected an HDF5 file ({error}); copy it again.") from error
    with file:
        yield file


def _description(file: Any, path: Path) -> Description:
    acquisition = _text(file.attrs.get("acquisition", ""))
    patient = _text(file.attrs.get("patient_id", "")) or None
    if SLICES not in file:
        return Description(acquisition, patient, None, False)
    shape = file[SLICES].shape
    if len(shape) != 3:
        raise DataError(f"{path}: expected {SLICES} of 3 dimensions, got {shape}.")
    directions = [d for start, d in DIRECTIONS.items() if acquisition.upper().startswith(start)]
    if not directions:
        raise DataError(
            f"{path}: expected an acquisition AX... or COR..., got {acquisition or 'none'!r}; "
            "its directions are not known."
        )
    spacing = _spacing(file[HEADER][()], path) if HEADER in file else None
    affine = np.eye(4)
    # rows of DIRECTIONS are axes of the array: columns of the affine
    affine[:3, :3] = directions[0].T * np.array(spacing or (1.0, 1.0, 1.0))
    grid = Grid((int(shape[2]), int(shape[1]), int(shape[0])), affine)
    return Description(acquisition, patient, grid, spacing is not None)


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _spacing(header: Any, path: Path) -> tuple[float, float, float] | None:
    """Millimetres along columns, rows and slices; None where the header has no field of view."""
    try:
        root = ElementTree.fromstring(_text(header))
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: its {HEADER} is no XML ({error}); copy it again.") from error
    space = root.find("{*}encoding/{*}reconSpace")
    found = []
    for axis in "xyz":
        pair = []
        for name in ("fieldOfView_mm", "matrixSize"):
            node = None if space is None else space.find(f"{{*}}{name}/{{*}}{axis}")
            if node is None or not node.text:
                return None
            try:
                pair.append(float(node.text))
            except ValueError as error:
                raise DataError(f"{path}: {name} {node.text!r} is no number.") from error
        if not (0 < pair[0] < np.inf and 0 < pair[1] < np.inf):
            raise DataError(f"{path}: expected a field of view above 0, got {pair[0]:g} mm.")
        found.append(pair[0] / pair[1])
    return found[0], found[1], found[2]
