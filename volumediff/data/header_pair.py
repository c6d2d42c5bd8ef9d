"""Volumes whose header and voxels are two files, .hdr and .img: pairs of NIfTI, and ANALYZE 7.5.

A NIfTI pair says where its voxels lie, as a single file does. ANALYZE does not, and programs
differ in what they assume of left and right: the read policy decides.
"""

from io import BytesIO
from pathlib import Path

import nibabel as nib
import numpy as np

from volumediff.data.arrays import nibabel_grid
from volumediff.data.forms import placed
from volumediff.data.grid import Grid
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.stored import StoredVolume
from volumediff.data.stored_bytes import chosen_frames, voxels
from volumediff.data.stream import open_regular, source
from volumediff.errors import DataError

__all__ = ["read_stored"]

HEADER_BYTES = 348
MAGIC = slice(344, 348)
# More than a slice of bytes behind the voxels: header and content do not belong together.
MOST_BEHIND = 1 << 20


def read_stored(path: Path, policy: ReadPolicy) -> StoredVolume:
    """Reads the pair that a .hdr or a .img belongs to.

    Raises:
        DataError: one of the two is missing or damaged, or there is no orientation
    """
    head, body = (path.with_suffix(_like(path, ending)) for ending in (".hdr", ".img"))
    for file in (head, body):
        if not file.is_file():
            raise DataError(f"{path}: expected {file.name} beside it; copy both files.")
    with open_regular(head) as file:
        raw_header = file.read(HEADER_BYTES)
    paired = raw_header[MAGIC] == b"ni1\0"
    kind = nib.nifti1.Nifti1PairHeader if paired else nib.analyze.AnalyzeHeader
    try:
        header = kind.from_fileobj(BytesIO(raw_header))
        shape = tuple(int(n) for n in header.get_data_shape())
        while len(shape) > 3 and shape[-1] == 1:
            shape = shape[:-1]
        dtype, offset = header.get_data_dtype(), int(header.get_data_offset())
        slope, inter = header.get_slope_inter() if paired else (1.0, 0.0)
    except (nib.spatialimages.HeaderDataError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{head}: cannot be read as a header ({error}).") from error
    with source(body) as content:
        content.take(max(offset, 0))
        raw = voxels(content, shape, dtype, policy)
        if content.drain(MOST_BEHIND) >= MOST_BEHIND:
            raise DataError(f"{body}: is larger than its header says; export the pair again.")
    sizes = (raw.shape[0], raw.shape[1], raw.shape[2])
    if paired and (int(header["sform_code"]) or int(header["qform_code"])):
        flat = np.broadcast_to(np.zeros(1, dtype), sizes)
        grid, remarks = nibabel_grid(
            nib.Nifti1Pair(flat, header.get_best_affine(), header), sizes, policy, str(head)
        )
    else:
        spacing = np.asarray(header["pixdim"][1:4], np.float64)
        affine, remarks = placed(sizes, np.abs(spacing), policy, head)
        grid = Grid(sizes, affine)
    raw = chosen_frames(raw, policy, head)
    if (slope or 1.0, inter or 0.0) != (1.0, 0.0):
        raw = raw.astype(np.float64) * (slope or 1.0) + (inter or 0.0)
    return StoredVolume(raw, grid, remarks)


def _like(path: Path, ending: str) -> str:
    return ending.upper() if path.suffix.isupper() else ending
