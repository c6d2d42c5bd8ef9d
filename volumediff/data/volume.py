"""A volume: voxels, where they lie, and whether they are intensities or labels.

The only place where orientation is decided. `read` returns arrays whose axes d, h, w point to
R, A, S, whatever the format and the order in the file; `write` takes such arrays back to the
file's own order. Both moves are flips and permutations: the round trip is exact to the bit.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from io import BufferedIOBase
from itertools import product
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from isal import igzip
from jaxtyping import Float, Shaped

from volumediff.data import values
from volumediff.data.arrays import (
    nibabel_grid,
    nibabel_image,
    real_numbers,
    spatial_shape,
    usable_affine,
)
from volumediff.data.dicom import read_series
from volumediff.data.forms import affine_of
from volumediff.data.grid import (
    Grid,
    agree,
    canonical,
    canonical_grid,
    from_canonical,
    native_order,
)
from volumediff.data.header import Header, parse, read_header, truncated
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.remarks import Remark
from volumediff.data.stream import Source, source
from volumediff.errors import DataError
from volumediff.storage.atomic import atomic

__all__ = [
    "OTHER_FORMATS",
    "SUFFIXES",
    "Grid",
    "ReadPolicy",
    "Remark",
    "Volume",
    "assembled",
    "check_grids",
    "read",
    "write",
]

SUFFIXES = (".nii.gz", ".nii")
# Formats that a public data set comes in; each module has a function `read_stored`.
OTHER_FORMATS = {
    ".jpg": "volumediff.data.picture",
    ".jpeg": "volumediff.data.picture",
    ".png": "volumediff.data.picture",
    ".h5": "volumediff.data.fastmri",
    ".nhdr": "volumediff.data.itk_files",
    ".nrrd": "volumediff.data.itk_files",
    ".mha": "volumediff.data.itk_files",
    ".mhd": "volumediff.data.itk_files",
    ".mgh": "volumediff.data.mgh",
    ".mgz": "volumediff.data.mgh",
    ".hdr": "volumediff.data.header_pair",
    ".img": "volumediff.data.header_pair",
}
# Voxels along the two axes of a column that is copied at a time.
COLUMN = 8
# Fields that can carry names of people or of files.
TEXT_FIELDS = ("descrip", "aux_file", "db_name", "intent_name")


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels with their geometry, axes along R, A, S.

    Arguments:
        array: channels first; float32 intensities or uint8 labels
        affine: voxel index of `array` to RAS millimetres
        kind: what the numbers are; labels are never interpolated linearly
        native: the grid of the file or image, for writing results
        path: the file, or the kind of the image, for messages
        findings: what was noticed and treated while reading
    """

    array: Shaped[np.ndarray, "c d h w"]
    affine: Float[np.ndarray, "4 4"]
    kind: Literal["image", "label"]
    native: Grid
    path: Path | None = None
    findings: tuple[Remark, ...] = ()

    @property
    def grid(self) -> Grid:
        """The canonical grid of the array."""
        _, d, h, w = self.array.shape
        return Grid((d, h, w), self.affine)

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        return self.grid.spacing_mm

    @classmethod
    def from_array(
        cls,
        array: Shaped[np.ndarray, "..."],
        affine: Shaped[np.ndarray, "..."],
        *,
        kind: Literal["image", "label"] = "image",
        policy: ReadPolicy = ReadPolicy(),  # noqa: B008 (frozen)
        name: str = "array",
    ) -> "Volume":
        """A volume of an array in memory, in any orientation.

        Arguments:
            array: (i, j, k), or channels first (c, i, j, k)
            affine: (4, 4), voxel index (i, j, k) to RAS millimetres, as in nibabel
            kind: intensities or labels
            policy: decisions on NaN and label values
            name: what messages call it

        Raises:
            DataError: another number of axes, no voxels, no real numbers, or no usable affine
        """
        grid = Grid(spatial_shape(np.shape(array), name), usable_affine(affine, name))
        array = real_numbers(array, name)
        channels = array[None] if array.ndim == 3 else array
        raw = np.moveaxis(channels, 0, -1)
        return assembled(raw, grid, kind=kind, policy=policy, path=Path(name))

    @classmethod
    def from_nibabel(
        cls,
        image: nib.spatialimages.SpatialImage,
        *,
        kind: Literal["image", "label"] = "image",
        policy: ReadPolicy = ReadPolicy(),  # noqa: B008 (frozen)
    ) -> "Volume":
        """A volume of an image of nibabel; forms that disagree are refused as in files.

        Arguments:
            image: with three axes, or frames on a fourth as far as `policy.frames` takes them
            kind: intensities or labels
            policy: decisions on ambiguous files

        Raises:
            DataError: no 3D volume, no or contradictory orientation, or no real numbers
        """
        name = "nibabel image"
        if len(image.shape) < 3:
            raise DataError(f"{name}: expected 3 axes, got {len(image.shape)}; stack the slices.")
        sizes = spatial_shape(image.shape[:3], name)
        frames = int(np.prod(image.shape[3:], dtype=int))
        if frames > 1 and policy.frames == "refuse":
            raise DataError(
                f"{name}: expected one 3D volume, got {frames} frames; give one frame, or a list "
                "of 3D images, one per channel."
            )
        grid, remarks = nibabel_grid(image, sizes, policy, name)
        raw = real_numbers(np.asanyarray(image.dataobj), name).reshape(*sizes, frames)
        if isinstance(policy.frames, int):
            raw = raw[..., policy.frames : policy.frames + 1]
        path = Path(name)
        return assembled(raw, grid, kind=kind, policy=policy, path=path, findings=remarks)

    @property
    def native_array(self) -> Shaped[np.ndarray, "c i j k"]:
        """The voxels in the order of the file or image that they came from."""
        return native_order(self.array, self.native)

    def to_nibabel(self) -> nib.Nifti1Image:
        """The volume on its own grid, in the voxel order that it came in; channels on axis 3."""
        return nibabel_image(self.native_array, self.native)

    def save(self, path: Path | str) -> Path:
        """Writes the volume as NIfTI, in the voxel order that it came in, whole or not at all.

        Raises:
            ValueError: the name does not end with .nii or .nii.gz
        """
        write(path, self.array, like=self, kind=self.kind)
        return Path(path)

    def __repr__(self) -> str:
        channels, *shape = self.array.shape
        spacing = "/".join(f"{s:.4g}" for s in self.spacing_mm)
        parts = [
            f"{channels} x {'x'.join(map(str, shape))} voxels along R, A, S",
            f"{spacing} mm",
            f"given as {self.native.axes}",
        ]
        return f"Volume({self.kind}, {', '.join(parts)})"


def read(
    path: Path | str,
    *,
    kind: Literal["image", "label"] = "image",
    policy: ReadPolicy = ReadPolicy(),  # noqa: B008 (frozen)
) -> Volume:
    """Reads a NIfTI file, a folder with one DICOM series, or a file of `OTHER_FORMATS`, into RAS.

    Raises:
        DataError: the file is damaged, ambiguous or not what it should be; the one line says
            what was expected, what came, and what to do
        UsageError: its format needs an optional package that is not installed
    """
    path = Path(path)
    other = None if path.is_dir() else OTHER_FORMATS.get(path.suffix.lower())
    if path.is_dir() or other is not None:
        reader = read_series if other is None else import_module(other).read_stored
        found = reader(path, policy)
        return assembled(
            found.raw, found.grid, kind=kind, policy=policy, path=path, findings=found.findings
        )
    name = path.name.lower()
    if not name.endswith(SUFFIXES):
        raise DataError(f"{path}: expected a .nii or .nii.gz file; convert it to NIfTI.")
    with source(path) as content:
        header, raw, findings = _read_voxels(content, policy)
    affine, remarks = affine_of(header, policy, path)
    return assembled(
        raw,
        Grid(header.shape[:3], affine, _repeatable(header, policy, path)),
        kind=kind,
        policy=policy,
        path=path,
        findings=[*findings, *remarks],
        slope=header.slope,
        inter=header.inter,
    )


def _repeatable(header: Header, policy: ReadPolicy, path: Path) -> bytes | None:
    """The header whose forms outputs repeat; none where the policy had to decide between forms,
    so that outputs say plainly where they lie."""
    undecided = replace(policy, forms="agree", no_forms="refuse")
    if undecided == policy:
        return header.raw
    try:
        affine_of(header, undecided, path)
    except DataError:
        return None
    return header.raw


def _read_voxels(content: Source, policy: ReadPolicy) -> tuple[Header, np.ndarray, list[Remark]]:
    """The stored numbers as (x, y, z, frame), after the stream was checked to its end."""
    path, findings = content.path, []
    named_gz = path.name.lower().endswith(".gz")
    if content.compressed and not named_gz:
        raise DataError(f"{path}: holds a gzip stream; rename it to {path.name}.gz.")
    if named_gz and not content.compressed and content.bytes_on_disk:
        findings.append(Remark("warning", "not_compressed", "named .gz, content is plain"))
    header = read_header(content, policy)
    buffer = np.empty(header.payload_bytes, np.uint8)
    got = content.into(memoryview(buffer))
    if got < header.payload_bytes:
        raise truncated(header, content, got)
    # Less than a slice too much is padding; more, and the header promises too little.
    smallest = header.payload_bytes // max(header.shape[:3])
    limit = max(smallest, 1024)
    surplus = content.drain(limit)
    if surplus >= limit:
        raise DataError(
            f"{path}: expected {header.payload_bytes} bytes of voxels, got at least {surplus} "
            "more: header and content do not belong together; export it again."
        )
    if surplus or content.garbage:
        findings.append(Remark("warning", "trailing_bytes", "bytes after the last voxel ignored"))
    raw = buffer.view(header.dtype).reshape(header.shape, order="F")
    if isinstance(policy.frames, int):
        raw = raw[..., policy.frames : policy.frames + 1]
    return header, raw, [*findings, *header.findings]


def assembled(
    raw: Shaped[np.ndarray, "x y z f"],
    grid: Grid,
    *,
    kind: Literal["image", "label"],
    policy: ReadPolicy,
    path: Path,
    findings: Sequence[Remark] = (),
    slope: float = 1.0,
    inter: float = 0.0,
) -> Volume:
    """A volume of the numbers that a file holds, frames last, on the file's own grid.

    Raises:
        DataError: numbers that are no intensities or no labels
    """
    moved, affine = canonical(raw, grid.affine)
    stored = _laid_out(np.moveaxis(moved, -1, 0))
    treat = values.intensities if kind == "image" else values.labels
    array, more = treat(stored, slope=slope, inter=inter, policy=policy, path=path)
    return Volume(array, affine, kind, grid, path, (*findings, *more))


def _laid_out(array: Shaped[np.ndarray, "c d h w"]) -> Shaped[np.ndarray, "c d h w"]:
    """A copy with w fastest in memory.

    Files have another axis fastest. In columns of a few voxels along both of these axes what is
    read and what is written stay in the cache, which takes a third of the time.
    """
    out = np.empty(array.shape, array.dtype)
    fastest = 1 + int(np.argmin(np.abs(array.strides[1:])))
    if fastest == 3:
        out[:] = array
        return out
    columns = [range(0, array.shape[axis], COLUMN) for axis in (fastest, 3)]
    for a, b in product(*columns):
        column = [slice(None)] * 4
        column[fastest], column[3] = slice(a, a + COLUMN), slice(b, b + COLUMN)
        out[tuple(column)] = array[tuple(column)]
    return out


def check_grids(image: Volume, other: Volume) -> None:
    """Image and mask, or two channels, must lie on one grid.

    Raises:
        DataError: other shape, spacing or position
    """
    difference = agree(image.grid, other.grid)
    if difference:
        raise DataError(
            f"{other.path}: expected the grid of {image.path}, got {difference}; resample it, or "
            "check that both belong to one case."
        )


def write(
    path: Path | str,
    array: Shaped[np.ndarray, "*c d h w"],
    *,
    like: Volume | Grid,
    kind: Literal["image", "label"],
    dtype: Literal["float32", "int16"] = "float32",
    level: Literal[0, 1, 2, 3] = 1,
) -> None:
    """Writes a canonical array into the file grid of `like`, whole or not at all.

    Arguments:
        path: ends with .nii or .nii.gz
        array: (d, h, w) or (c, d, h, w) with axes along R, A, S
        like: the volume that was read, or its `native` grid; forms, codes and units are repeated
        kind: labels become uint8
        dtype: of images; int16 is scaled to the range of the values
        level: of the compression by ISA-L, from the fastest to the smallest; its first makes maps
            as small as zlib's sixth in a tenth of the time

    Raises:
        ValueError: array and grid do not fit, or values are not finite or not labels
    """
    path = Path(path)
    grid = like.native if isinstance(like, Volume) else like
    if not path.name.lower().endswith(SUFFIXES):
        raise ValueError(f"{path}: expected a name that ends with .nii or .nii.gz.")
    channels = array[None] if array.ndim == 3 else array
    expected = canonical_grid(grid).shape
    if channels.ndim != 4 or channels.shape[1:] != expected:
        raise ValueError(f"{path}: expected a shape of {expected}, got {array.shape}.")
    if not np.isfinite(channels).all():
        raise ValueError(f"{path}: expected finite values, got NaN or Inf.")
    if kind == "label" and not np.isin(channels, np.arange(256)).all():
        raise ValueError(f"{path}: expected whole labels from 0 to 255.")
    stored = from_canonical(np.moveaxis(channels, 0, -1), grid)
    header = _header_like(grid)
    slope, inter = 1.0, 0.0
    if kind == "label":
        stored = stored.astype(np.uint8)
    elif dtype == "float32":
        stored = stored.astype(np.float32)
    else:
        stored, slope, inter = _as_int16(stored)
    frames = stored.shape[3]
    header.set_data_dtype(stored.dtype)
    header.set_data_shape(stored.shape if frames > 1 else stored.shape[:3])
    header["scl_slope"], header["scl_inter"] = slope, inter
    with atomic(path) as file:
        if path.name.lower().endswith(".gz"):
            # no name and no time in the stream: equal volumes give equal files
            with igzip.GzipFile("", "wb", level, file, mtime=0) as stream:
                _write_single(stream, header, stored)
        else:
            _write_single(file, header, stored)


def _header_like(grid: Grid) -> nib.Nifti1Header:
    """A fresh little-endian header with the geometry of the file that the grid came from."""
    if grid.header is None:
        header = nib.Nifti1Header(endianness="<")
        header.set_data_shape(grid.shape)
        header.set_sform(grid.affine, code=1)
        header.set_qform(grid.affine, code=1)
        header.set_xyzt_units("mm")
        return header
    old = parse(grid.header)
    cls = nib.Nifti1Header if int(old["sizeof_hdr"]) == 348 else nib.Nifti2Header
    header = cls(grid.header, endianness=">" if old.dtype["dim"].base.byteorder == ">" else "<")
    header = header.as_byteswapped("<")
    for name in set(TEXT_FIELDS) & set(header.keys()):  # NIfTI-2 has fewer
        header[name] = b""
    for name in ("cal_min", "cal_max", "intent_code", "intent_p1", "intent_p2", "intent_p3"):
        header[name] = 0
    header["slice_code"] = header["slice_start"] = header["slice_end"] = 0
    header["dim"] = [3, *grid.shape, 1, 1, 1, 1]
    header["pixdim"][4:] = 1
    header["xyzt_units"] = int(old["xyzt_units"]) & 7
    header["magic"] = header.single_magic
    return header


def _as_int16(array: np.ndarray) -> tuple[np.ndarray, float, float]:
    low, high = float(array.min()), float(array.max())
    inter = (low + high) / 2
    # the slope as it will be read back, in float32
    slope = float(np.float32((high - low) / 65534)) or 1.0
    inter = float(np.float32(inter))
    coded = np.rint((array.astype(np.float64) - inter) / slope)
    return np.clip(coded, -32768, 32767).astype(np.int16), slope, inter


def _write_single(file: BufferedIOBase, header: nib.Nifti1Header, array: np.ndarray) -> None:
    header["vox_offset"] = header.sizeof_hdr + 4
    file.write(header.binaryblock)
    file.write(bytes(4))  # no extensions
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    for frame in range(little.shape[3]):
        for k in range(little.shape[2]):
            file.write(little[:, :, k, frame].tobytes(order="F"))
