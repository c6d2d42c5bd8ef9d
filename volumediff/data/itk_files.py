"""NRRD and MetaImage volumes: a header in text and raw or compressed voxels, in it or beside it.

SimpleITK reads them; its world axes point to L, P, S. Of a damaged compressed MetaImage it hands
out what it has understood, so that such a stream is checked before. Voxels that lie in a file of
their own lie beside the header: a path to elsewhere is refused.
"""

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from volumediff.data.grid import Grid
from volumediff.data.read_policy import ReadPolicy, remedy
from volumediff.data.stored import StoredVolume
from volumediff.data.stream import CHUNK, open_regular
from volumediff.errors import DataError

if TYPE_CHECKING:
    import SimpleITK as sitk

__all__ = ["read_stored", "stored_grid"]

READERS = {
    ".nrrd": ("NRRD", "NrrdImageIO"),
    ".nhdr": ("NRRD", "NrrdImageIO"),
    ".mha": ("MetaImage", "MetaImageIO"),
    ".mhd": ("MetaImage", "MetaImageIO"),
}
HEADER_BYTES = 1 << 16
# Where the voxels are, as the two formats say it.
DATA_FILE = re.compile(rb"^(?:ElementDataFile *=|data ?file *:) *(.*?) *\r?$", re.I | re.M)
COMPRESSED = re.compile(rb"^CompressedData *= *True", re.I | re.M)
SIZES = re.compile(rb"^DimSize *= *([\d ]+)", re.M)
TYPE = re.compile(rb"^ElementType *= *MET_(\w+)", re.M)
ITEM_BYTES = {"CHAR": 1, "SHORT": 2, "INT": 4, "LONG": 4, "LONG_LONG": 8, "FLOAT": 4, "DOUBLE": 8}
ZLIB_OR_GZIP = 47


def read_stored(path: Path, policy: ReadPolicy) -> StoredVolume:
    """Reads one volume of real numbers.

    Raises:
        DataError: another format, voxels that are missing or damaged, or no 3D volume
    """
    import SimpleITK as sitk

    _check_voxels(path, meta=_format(path) == "MetaImage")
    with _reading(path) as reader:
        size = reader.GetSize()
        if 8 * np.prod(size, dtype=float) > policy.budget_bytes:
            raise DataError(
                f"{path}: {size} voxels are more than the budget; {remedy('budget_bytes=N')}."
            )
        image = reader.Execute()
    array = sitk.GetArrayFromImage(image).transpose(2, 1, 0)  # z, y, x -> x, y, z
    return StoredVolume(array[..., None], _grid(image))


def stored_grid(path: Path) -> Grid:
    """Where the voxels of a file lie, from its header alone.

    Raises:
        DataError: as `read_stored`
    """
    with _reading(path) as reader:
        return _grid(reader)


def _format(path: Path) -> str:
    return READERS[path.suffix.lower()][0]


@contextmanager
def _reading(path: Path) -> Iterator["sitk.ImageFileReader"]:
    """A reader that has read the header of one volume of real numbers."""
    import SimpleITK as sitk

    warn = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)  # it would write to stderr
    try:
        reader = sitk.ImageFileReader()
        reader.SetFileName(str(path))
        reader.SetImageIO(READERS[path.suffix.lower()][1])
        reader.ReadImageInformation()
        size = reader.GetSize()
        if len(size) != 3 or reader.GetNumberOfComponents() != 1:
            raise DataError(f"{path}: expected a 3D volume of numbers, got size {size}.")
        yield reader
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise DataError(f"{path}: cannot be read as {_format(path)} ({last}).") from error
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(warn)


def _grid(image: "sitk.Image | sitk.ImageFileReader") -> Grid:
    """Where the voxels of an image or of a header lie."""
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * np.array(image.GetSpacing())
    affine[:3, 3] = image.GetOrigin()
    x, y, z = image.GetSize()
    return Grid((x, y, z), np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def _check_voxels(path: Path, *, meta: bool) -> None:
    """Refuses voxels that lie elsewhere, and those of a MetaImage that are cut off or damaged."""
    with open_regular(path) as file:
        head = file.read(HEADER_BYTES)
    match = DATA_FILE.search(head)
    named = "LOCAL" if match is None else match[1].decode("utf-8", "surrogateescape")
    inside = named.upper() in ("LOCAL", "")
    if not inside and Path(named).name != named.removeprefix("./"):
        raise DataError(
            f"{path}: names the voxels {named!r}; expected a file beside it, put it there and "
            "correct the header."
        )
    if not meta or match is None:
        return
    voxels, start = (path, match.end() + 1) if inside else (path.with_name(named), 0)
    sizes, kind = SIZES.search(head[: match.end()]), TYPE.search(head[: match.end()])
    if sizes is None or kind is None:
        raise DataError(f"{path}: expected a MetaImage with DimSize and ElementType; check it.")
    item = ITEM_BYTES.get(kind[1].decode().removeprefix("U"), 1)
    expected = item * int(np.prod([int(n) for n in sizes[1].split()], dtype=object))
    found = _inflated if COMPRESSED.search(head[: match.end()]) else _plain
    got = found(voxels, start, expected)
    if got < expected:
        raise DataError(
            f"{path}: expected {expected} bytes of voxels, got {got}; the file is cut off, copy "
            "or export it again."
        )


def _plain(path: Path, start: int, expected: int) -> int:
    with open_regular(path) as file:
        return file.seek(0, 2) - start


def _inflated(path: Path, start: int, expected: int) -> int:
    """Bytes in a compressed stream, read to its checksum; more than expected is enough."""
    stream, count = zlib.decompressobj(ZLIB_OR_GZIP), 0
    with open_regular(path) as file:
        file.seek(start)
        data = file.read(CHUNK)
        try:
            while data and not stream.eof and count <= expected:
                count += len(stream.decompress(data, CHUNK))
                data = stream.unconsumed_tail or file.read(CHUNK)
            while not stream.eof and count <= expected and (rest := stream.decompress(b"", CHUNK)):
                count += len(rest)
        except zlib.error as error:
            raise DataError(
                f"{path}: expected an intact compressed stream, but it is damaged ({error}); copy "
                "or export the file again."
            ) from error
    return count if stream.eof or count > expected else min(count, expected - 1)
