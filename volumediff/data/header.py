"""The 348 bytes of NIfTI-1, or the 540 of NIfTI-2, each field checked before it is used.

Nothing is allocated and no voxel is read before the header is known to be consistent in itself,
with the size of the file, and with the memory budget.
"""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import nibabel as nib
import numpy as np

from volumediff.data.read_policy import ReadPolicy, remedy
from volumediff.data.remarks import Remark
from volumediff.data.stream import Source
from volumediff.errors import DataError

__all__ = ["Header", "parse", "read_header"]

# (version, size) -> magic of a single file with header and voxels; record layout from nibabel
MAGIC = {348: b"n+1\0", 540: b"n+2\0\r\n\032\n"}
PAIR = {348: b"ni1\0", 540: b"ni2\0\r\n\032\n"}
LAYOUT = {348: nib.nifti1.header_dtype, 540: nib.nifti2.header_dtype}
NUMBERS = {
    2: "u1",
    4: "i2",
    8: "i4",
    16: "f4",
    64: "f8",
    256: "i1",
    512: "u2",
    768: "u4",
    1024: "i8",
    1280: "u8",
}
REFUSED = {
    0: "unknown",
    1: "1-bit",
    32: "complex",
    128: "RGB colour",
    1536: "128-bit float",
    1792: "complex",
    2048: "complex",
    2304: "RGBA colour",
}
MM_PER_UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}
# Extensions are a few kilobytes; an offset beyond this is a damaged field.
MOST_OFFSET = 1 << 26


@dataclass(frozen=True)
class Header:
    """A checked header.

    Arguments:
        raw: the bytes as they are in the file
        fields: the same as a numpy record in the file's byte order
        shape: voxels along x, y, z and frames
        dtype: number type of a stored voxel, in the file's byte order
        offset: where the voxels start
        slope, inter: stored value -> intensity; None where values are stored unscaled
        mm_per_unit: factor of the affine's unit to millimetres
        findings: what was treated
    """

    raw: bytes
    fields: np.void
    shape: tuple[int, int, int, int]
    dtype: np.dtype
    offset: int
    slope: float
    inter: float
    mm_per_unit: float
    findings: tuple[Remark, ...] = field(default=())

    @property
    def payload_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def parse(raw: bytes) -> np.void:
    """The header's fields; the size field tells version and byte order.

    Raises:
        ValueError: neither 348 nor 540 in either byte order
    """
    for order in "<>":
        size = int(np.frombuffer(raw[:4], order + "i4")[0])
        if size in LAYOUT and len(raw) >= size:
            return np.frombuffer(raw[:size], LAYOUT[size].newbyteorder(order))[0]
    raise ValueError("the header does not start with 348 or 540")


def read_header(source: Source, policy: ReadPolicy) -> Header:
    """Reads and checks the header; the source then stands at the first voxel."""
    path = source.path
    raw = source.take(348)
    fields = _fields(raw, source)
    size = int(fields["sizeof_hdr"])
    if size == 540:
        raw += source.take(540 - 348)
        fields = parse(raw)
    shape = _shape(fields, path)
    dtype = _dtype(fields, path)
    if shape[3] > 1 and policy.frames == "refuse":
        raise DataError(
            f"{path}: expected one 3D volume, got {shape[3]} frames; "
            f"{remedy('frames=channels', 'frames=0')}."
        )
    if isinstance(policy.frames, int) and not 0 <= policy.frames < shape[3]:
        raise DataError(
            f"{path}: frame {policy.frames} is wanted, the file has {shape[3]} (counted from 0); "
            f"{remedy(f'frames={shape[3] - 1}')}."
        )
    offset = _offset(fields, size, path)
    findings: list[Remark] = []
    slope, inter = _scaling(fields, path, findings)
    unit = int(fields["xyzt_units"]) & 7
    if unit not in MM_PER_UNIT:
        raise DataError(f"{path}: unknown unit of length (code {unit}); set xyzt_units to 2 (mm).")
    if unit in (1, 3):
        name = "metres" if unit == 1 else "micrometres"
        findings.append(Remark("warning", "units", f"geometry in {name}, converted to mm"))
    header = Header(
        raw, fields, shape, dtype, offset, slope, inter, MM_PER_UNIT[unit], tuple(findings)
    )
    _sizes(header, source, policy)
    between = source.take(offset - size)
    return _with_extensions(header, between, path)


def _fields(raw: bytes, source: Source) -> np.void:
    path = source.path
    if len(raw) < 348:
        what = "an empty file" if not source.bytes_on_disk else f"{len(raw)} bytes of content"
        raise DataError(f"{path}: expected a NIfTI header, got {what}{_guess(raw)}.")
    try:
        # a NIfTI-2 header is longer, but its first fields say all that is needed here
        fields = parse(raw + bytes(540 - 348))
    except ValueError as error:
        raise DataError(
            f"{path}: expected a NIfTI file, but {error}{_guess(raw)}; convert or export it again."
        ) from error
    size = int(fields["sizeof_hdr"])
    magic = raw[344:348] if size == 348 else raw[4:12]
    if magic == PAIR[size]:
        raise DataError(
            f"{path}: says that its voxels are in a separate .img file; convert the pair to "
            "one .nii.gz."
        )
    if magic != MAGIC[size]:
        raise DataError(
            f"{path}: expected the NIfTI magic {MAGIC[size]!r}, got {magic!r} (ANALYZE, or "
            "damaged); convert it to NIfTI."
        )
    return fields


def _guess(raw: bytes) -> str:
    start = raw[:64].lstrip().lower()
    if start.startswith(b"version https://git-lfs"):
        return " (a git-lfs pointer: run `git lfs pull`)"
    if start.startswith((b"<html", b"<!doctype")):
        return " (a web page: the download went wrong)"
    return ""


def _shape(fields: np.void, path: Path) -> tuple[int, int, int, int]:
    dim = [int(n) for n in fields["dim"]]
    n = dim[0]
    if not 1 <= n <= 7:
        raise DataError(f"{path}: expected 3 dimensions, the header says {n}; export it again.")
    sizes = dim[1 : n + 1]
    if min(sizes) < 1:
        raise DataError(f"{path}: the header has a dimension below 1 ({sizes}); export it again.")
    if n < 3:
        raise DataError(
            f"{path}: expected a 3D volume, got a {n}D image without slice thickness; stack the "
            "slices, or store one slice as 3D with its thickness."
        )
    if max(sizes[4:], default=1) > 1:
        raise DataError(f"{path}: expected a 3D volume, got {n}D {sizes}; split it into volumes.")
    return sizes[0], sizes[1], sizes[2], sizes[3] if n > 3 else 1


def _dtype(fields: np.void, path: Path) -> np.dtype:
    code, bits = int(fields["datatype"]), int(fields["bitpix"])
    if code not in NUMBERS:
        kind = REFUSED.get(code, "undefined")
        raise DataError(
            f"{path}: expected real numbers, got the {kind} data type (code {code}); convert it "
            "to int16 or float32."
        )
    dtype = np.dtype(NUMBERS[code]).newbyteorder(fields.dtype["dim"].base.byteorder)
    if bits != dtype.itemsize * 8:
        raise DataError(
            f"{path}: the header contradicts itself: data type {dtype.name} has "
            f"{dtype.itemsize * 8} bits, bitpix says {bits}; export it again."
        )
    return dtype


def _offset(fields: np.void, size: int, path: Path) -> int:
    offset = float(fields["vox_offset"])
    # header, then 4 bytes that say whether extensions follow
    if not np.isfinite(offset) or offset != int(offset) or not size + 4 <= offset <= MOST_OFFSET:
        raise DataError(
            f"{path}: expected voxels to start at byte {size + 4} or later, the header says "
            f"{offset:g}; export it again."
        )
    return int(offset)


def _scaling(fields: np.void, path: Path, findings: list[Remark]) -> tuple[float, float]:
    slope, inter = float(fields["scl_slope"]), float(fields["scl_inter"])
    if slope == 0:
        return 1.0, 0.0
    if not np.isfinite(slope):
        text = f"scaling slope is {slope}: values are read unscaled"
        findings.append(Remark("warning", "slope", text))
        return 1.0, 0.0
    if abs(slope) < float(np.finfo(np.float32).tiny):  # as float32 it may overflow
        raise DataError(
            f"{path}: expected a scaling slope of usual size, got {slope:g}, which no scanner "
            "writes and which leaves nothing of the stored values; set scl_slope (often 1)."
        )
    if not np.isfinite(inter):
        raise DataError(
            f"{path}: expected a finite scaling intercept, got {inter}; set scl_inter (often 0)."
        )
    if slope < 0:
        text = f"negative scaling slope {slope:g} inverts the stored contrast"
        findings.append(Remark("warning", "slope_negative", text))
    return slope, inter


def _sizes(header: Header, source: Source, policy: ReadPolicy) -> None:
    path, need = source.path, header.payload_bytes
    # held at once: the stored voxels, and the same as float32
    held = max(need, 4 * prod(header.shape))
    if held > policy.budget_bytes:
        raise DataError(
            f"{path}: the header announces {held} bytes, more than the budget of "
            f"{policy.budget_bytes}; {remedy(f'budget_bytes={held}')}."
        )
    if header.offset + need > source.most_bytes:
        raise truncated(header, source, source.most_bytes - header.offset)


def truncated(header: Header, source: Source, got: int) -> DataError:
    """The error for fewer bytes than the header announces."""
    limit = "at most " if source.compressed and got > 0 else ""
    return DataError(
        f"{source.path}: expected {header.payload_bytes} bytes of voxels, got "
        f"{limit}{max(got, 0)}: the file is cut off; copy or export it again."
    )


def _with_extensions(header: Header, between: bytes, path: Path) -> Header:
    """Walks the chain of extensions (size, code, content) without using their content."""
    if len(between) < 4:
        raise DataError(f"{path}: ends inside its header; copy or export it again.")
    order = header.fields.dtype["dim"].base.byteorder
    at = 4
    while between[0] and at + 8 <= len(between):
        size = int(np.frombuffer(between[at : at + 4], f"{order}i4")[0])
        if size == 0 and not any(between[at:]):
            break
        if size < 8 or size % 16 or at + size > len(between):
            note = Remark("warning", "extension", f"header extension of size {size} ignored")
            return Header(**{**vars(header), "findings": (*header.findings, note)})
        at += size
    return header
