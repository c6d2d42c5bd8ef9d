"""2D pictures (JPEG, PNG) as volumes of one slice.

Slices are stacked along w, as axial ones are, and whatever a picture shows is laid out like an
axial slice on a screen: columns run to the patient's left, rows to posterior. Pictures have no
millimetres; a pixel counts as 1 mm, and both are said in the findings.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from volumediff.data.grid import Grid
from volumediff.data.read_policy import ReadPolicy, remedy
from volumediff.data.remarks import Remark
from volumediff.data.stored import StoredVolume
from volumediff.data.stream import open_regular
from volumediff.errors import DataError

__all__ = ["picture_grid", "read_stored"]

# Grey levels of 8, 16 and 32 bit, black and white, and colours that may turn out to be grey.
GREY = ("1", "L", "I;16", "I;16B", "I;16L", "I", "F")
COLOUR = ("RGB", "RGBA", "LA", "P")


def picture_grid(columns: int, rows: int) -> Grid:
    """The grid of a picture: axes columns, rows, slice."""
    return Grid((columns, rows, 1), np.diag([-1.0, -1.0, 1.0, 1.0]))


def read_stored(path: Path, policy: ReadPolicy) -> StoredVolume:
    """Reads a picture of grey levels.

    Raises:
        DataError: no picture, a damaged one, or one with colours
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with open_regular(path) as file, Image.open(file) as picture:
            columns, rows = picture.size
            if 4 * columns * rows > policy.budget_bytes:
                raise DataError(
                    f"{path}: {columns} x {rows} pixels are more than the budget of "
                    f"{policy.budget_bytes / 2**30:.3g} GiB; "
                    f"{remedy(f'budget_bytes={4 * columns * rows}')}."
                )
            grey = _grey(picture, path)
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: expected a JPEG or PNG picture; check the file.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: the picture is damaged ({reason}); copy it again.") from error
    findings = (
        Remark("info", "picture", "a 2D picture, laid out as an axial slice; 1 mm assumed"),
        Remark("info", "single_slice", "one voxel thick along an axis"),
    )
    grid = picture_grid(columns, rows)
    return StoredVolume(grey.T[:, :, None, None], grid, findings)


def _grey(picture: object, path: Path) -> Shaped[np.ndarray, "y x"]:
    """Rows and columns of grey levels; equal red, green and blue are grey."""
    mode = picture.mode
    if mode in GREY:
        array = np.asarray(picture)
        return array.astype(np.uint8) if mode == "1" else array
    if mode not in COLOUR:
        raise DataError(f"{path}: expected grey levels, got the mode {mode}; convert the picture.")
    colours = np.asarray(picture.convert("RGB"))
    if (colours != colours[..., :1]).any():
        raise DataError(f"{path}: expected grey levels, got colours; convert the picture.")
    return colours[..., 0]
