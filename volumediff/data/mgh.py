"""FreeSurfer's volumes, .mgh and .mgz: nibabel reads the header, the stream is read to its end."""

from io import BytesIO
from pathlib import Path

import numpy as np
from nibabel.freesurfer.mghformat import MGHError, MGHHeader

from volumediff.data.forms import defect, placed
from volumediff.data.grid import Grid
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.stored import StoredVolume
from volumediff.data.stored_bytes import chosen_frames, voxels
from volumediff.data.stream import source
from volumediff.errors import DataError

__all__ = ["read_stored"]

HEADER_BYTES = 284
GOOD_RAS = slice(28, 30)
# What may follow the voxels: five scan parameters, and tags of the commands that made the file.
FOOTER_BYTES = 20
MOST_BEHIND = 1 << 24


def read_stored(path: Path, policy: ReadPolicy) -> StoredVolume:
    """Reads one volume, or the frames that the policy takes.

    Raises:
        DataError: another format, a damaged stream, or no orientation
    """
    with source(path) as content:
        head = content.take(HEADER_BYTES)
        try:
            header = MGHHeader.from_fileobj(BytesIO(head))
            shape = tuple(int(n) for n in header.get_data_shape())
            dtype = header.get_data_dtype()
        except (MGHError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(f"{path}: cannot be read as .mgz ({error}).") from error
        raw = voxels(content, shape, dtype, policy)
        behind = content.drain(MOST_BEHIND)
    if 0 < behind < FOOTER_BYTES or behind >= MOST_BEHIND:
        raise DataError(
            f"{path}: expected nothing or scan parameters behind the voxels, got {behind} bytes; "
            "copy or export it again."
        )
    spacing = np.asarray(header["delta"], np.float64)
    if int.from_bytes(head[GOOD_RAS], "big", signed=True) > 0:  # nibabel sets it where it is not
        affine = np.asarray(header.get_affine(), np.float64)
        reason = defect(affine)
        if reason is not None:
            raise DataError(f"{path}: expected a usable affine, but {reason}; export it again.")
        remarks = ()
    else:
        affine, remarks = placed(raw.shape[:3], spacing, policy, path)
    x, y, z = raw.shape[:3]
    return StoredVolume(chosen_frames(raw, policy, path), Grid((x, y, z), affine), remarks)
