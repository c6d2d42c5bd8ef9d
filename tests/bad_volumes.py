"""A corpus of bad and of odd but good volumes, made from one small image by one change each.

Each entry says what must happen: `refused` with a word of the message, or `accepted` with the code
of a finding (None: a control, accepted without any).
"""

import gzip
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np

from volumediff.data.read_policy import ReadPolicy

SHAPE, SPACING = (20, 24, 16), (1.0, 1.2, 2.5)
AFFINE = np.array([[1, 0, 0, -10], [0, 1.2, 0, -12], [0, 0, 2.5, -20], [0, 0, 0, 1.0]])


@dataclass(frozen=True)
class Entry:
    name: str
    build: Callable[[Path], Path]
    must: Literal["refused", "accepted"]
    word: str | None
    kind: Literal["image", "label"] = "image"
    policy: ReadPolicy = field(default_factory=ReadPolicy)


def voxels(shape=SHAPE, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 1000, shape).astype(np.float32)


def lesion(shape=SHAPE) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    mask[8:12, 9:13, 5:9] = 1
    return mask


def content(data, *, affine=AFFINE, version=1, order="<", sform=1, qform=0, edits=(), between=b""):
    """Bytes of a NIfTI file: a valid header, then `edits` to its fields with no check at all."""
    cls = nib.Nifti1Header if version == 1 else nib.Nifti2Header
    header = cls(endianness=order)
    header.set_data_dtype(data.dtype)
    header.set_data_shape(data.shape)
    if sform is not None and data.ndim >= 3:
        header.set_sform(affine, code=sform)
    if data.ndim >= 3:
        header.set_qform(affine, code=qform)
        header["pixdim"][1:4] = np.linalg.norm(affine[:3, :3], axis=0)
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = header.sizeof_hdr + 4 + len(between)
    for name, value in dict(edits).items():
        if isinstance(name, tuple):
            at = list(name[1]) if isinstance(name[1], tuple) else name[1]
            header.structarr[name[0]][at] = value
        else:
            header.structarr[name] = value
    extender = b"\1\0\0\0" if between else bytes(4)
    stored = data.astype(data.dtype.newbyteorder(order))
    block = header.structarr.tobytes()
    return block + extender + between + stored.tobytes(order="F")


def saved(name: str, blob: bytes) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(blob)
        return path

    return build


def packed(blob: bytes, cut: Callable[[bytes], bytes] = lambda b: b, name="a.nii.gz"):
    return saved(name, cut(gzip.compress(blob, 6, mtime=0)))


def edited(*, data=None, **options) -> Callable[[Path], Path]:
    data = voxels() if data is None else data
    edits = options.pop("edits", {})
    return packed(content(data, edits=edits, **options))


def field_edit(name, value) -> Callable[[Path], Path]:
    return edited(edits={name: value})


def no_forms(**edits) -> Callable[[Path], Path]:
    return edited(sform=0, edits={("pixdim", k): v for k, v in enumerate(edits.values(), start=1)})


def affine_with(changes) -> np.ndarray:
    affine = AFFINE.copy()
    for at, value in changes.items():
        affine[at] = value
    return affine


def damaged(values, dtype=np.float32) -> np.ndarray:
    data = voxels().astype(dtype)
    data.flat[: len(values)] = values
    return data


def fifo(folder: Path) -> Path:
    os.mkfifo(folder / "a.nii.gz")
    return folder / "a.nii.gz"


def link(target: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / "a.nii.gz").symlink_to(target)
        return folder / "a.nii.gz"

    return build


def folder_named(name: str) -> Callable[[Path], Path]:
    def build(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return build


def bomb(folder: Path) -> Path:
    """A header for 7 GB of zeros, then 64 MiB of them."""
    blob = content(voxels(), edits={("dim", (1, 2, 3)): (1300, 1300, 1040)})
    return packed(blob[:352] + bytes(1 << 26))(folder)


def hidden_bomb(folder: Path) -> Path:
    """A small header, then 256 MiB of zeros that it does not announce."""
    return packed(content(voxels()) + bytes(1 << 28))(folder)


def form_pair(sform: np.ndarray, qform: np.ndarray) -> Callable[[Path], Path]:
    header = nib.Nifti1Header()
    header.set_qform(qform, code=1)
    names = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
    edits = {n: header[n] for n in names}
    edits |= {("pixdim", (0, 1, 2, 3)): header["pixdim"][:4], "qform_code": 1}
    return edited(affine=sform, edits=edits)


def values(*numbers) -> np.ndarray:
    data = lesion().astype(np.float64)
    data.flat[: len(numbers)] = numbers
    return data.astype(np.float32)


GOOD = content(voxels())
NAN, INF = float("nan"), float("inf")
LAS = ReadPolicy(no_forms="las")
MIRRORED = affine_with({(0, 0): -1, (0, 3): 9})


def corpus() -> list[Entry]:
    return [*_files(), *_headers(), *_numbers(), *_geometry(), *_labels(), *_controls()]


def _files() -> list[Entry]:
    bad, odd = "refused", "accepted"
    half = gzip.compress(GOOD)
    return [
        Entry("missing", lambda folder: folder / "a.nii.gz", bad, "not there"),
        Entry("empty", saved("a.nii", b""), bad, "empty"),
        Entry("empty_gz_name", saved("a.nii.gz", b""), bad, "empty"),
        Entry("html", saved("a.nii.gz", b"<!DOCTYPE html>" + bytes(400)), bad, "web page"),
        Entry("html_short", saved("a.nii.gz", b"<html>"), bad, "web page"),
        Entry(
            "lfs", saved("a.nii.gz", b"version https://git-lfs.github.com/v1\n"), bad, "git lfs"
        ),
        Entry("folder", folder_named("a.nii.gz"), bad, "DICOM"),
        Entry("link_loop", link("a.nii.gz"), bad, "cannot be opened"),
        Entry("link_dangling", link("nowhere"), bad, "points nowhere"),
        Entry("fifo", fifo, bad, "pipe"),
        Entry("device", link("/dev/zero"), bad, "pipe or a device"),
        Entry("nii_holds_gzip", saved("a.nii", half), bad, "rename"),
        Entry("other_suffix", saved("a.mnc", half), bad, "convert"),
        Entry("gz_cut_half", saved("a.nii.gz", half[: len(half) // 2]), bad, "cut off"),
        Entry("gz_header_only", packed(GOOD[:352]), bad, "cut off"),
        Entry("gz_part_of_header", packed(GOOD[:200]), bad, "NIfTI header"),
        Entry("gz_payload_short", packed(GOOD[:-5000]), bad, "cut off"),
        Entry("plain_short", saved("a.nii", GOOD[:-5000]), bad, "cut off"),
        Entry("plain_ends_in_header", saved("a.nii", GOOD[:349]), bad, "cut off"),
        Entry("gz_crc", packed(GOOD, lambda b: b[:-8] + bytes(4) + b[-4:]), bad, "damaged"),
        Entry("gz_length", packed(GOOD, lambda b: b[:-4] + bytes(4)), bad, "damaged"),
        Entry("gz_no_trailer", packed(GOOD, lambda b: b[:-8]), bad, "checksum"),
        Entry("bomb_announced", bomb, bad, "budget"),
        Entry("bomb_hidden", hidden_bomb, bad, "do not belong together"),
        Entry("half_promised", field_edit(("dim", 3), 8), bad, "do not belong together"),
        Entry("payload_longer", packed(GOOD + bytes(300)), odd, "trailing_bytes"),
        Entry("plain_longer", saved("a.nii", GOOD + bytes(300)), odd, "trailing_bytes"),
        Entry("gz_garbage", packed(GOOD, lambda b: b + b"garbage"), odd, "trailing_bytes"),
        Entry("gz_name_plain", saved("a.nii.gz", GOOD), odd, "not_compressed"),
    ]


def _headers() -> list[Entry]:
    bad, odd = "refused", "accepted"
    huge = {("dim", (1, 2, 3)): (3000, 3000, 3000)}
    return [
        Entry("promises_100_gb", edited(edits=huge), bad, "budget"),
        Entry("promises_100_gb_plain", saved("a.nii", content(voxels(), edits=huge)), bad, "bud"),
        Entry("promises_1_gb", field_edit(("dim", (1, 2, 3)), (640,) * 3), bad, "cut off"),
        Entry("magic_wrong", field_edit("magic", b"abc"), bad, "magic"),
        Entry("magic_zero", field_edit("magic", b""), bad, "magic"),
        Entry("magic_pair", field_edit("magic", b"ni1"), bad, ".img"),
        Entry("bitpix", field_edit("bitpix", 16), bad, "bitpix"),
        Entry("sizeof_hdr", field_edit("sizeof_hdr", 347), bad, "348 or 540"),
        Entry("dims_0", field_edit(("dim", 0), 0), bad, "3 dimensions"),
        Entry("dims_9", field_edit(("dim", 0), 9), bad, "3 dimensions"),
        Entry("dim_negative", field_edit(("dim", 2), -24), bad, "below 1"),
        Entry("dim_zero", field_edit(("dim", 3), 0), bad, "below 1"),
        Entry("datatype_unknown", field_edit("datatype", 77), bad, "data type"),
        Entry("datatype_bit", field_edit("datatype", 1), bad, "1-bit"),
        Entry("rgb", edited(edits={"datatype": 128, "bitpix": 24}), bad, "RGB"),
        Entry("complex", edited(data=voxels().astype(np.complex64)), bad, "complex"),
        Entry("offset_negative", field_edit("vox_offset", -352), bad, "start at byte"),
        Entry("offset_nan", field_edit("vox_offset", NAN), bad, "start at byte"),
        Entry("offset_zero", field_edit("vox_offset", 0), bad, "start at byte"),
        Entry("offset_inside", field_edit("vox_offset", 348), bad, "start at byte"),
        Entry("offset_fraction", field_edit("vox_offset", 352.5), bad, "start at byte"),
        Entry("offset_huge", field_edit("vox_offset", 1e9), bad, "start at byte"),
        Entry("offset_past_end", field_edit("vox_offset", 60000), bad, "cut off"),
        Entry("extension_huge", edited(between=_extension(2**30)), odd, "extension"),
        Entry("extension_negative", edited(between=_extension(-16)), odd, "extension"),
        Entry("unit_unknown", field_edit("xyzt_units", 7), bad, "unit"),
        Entry("two_d", edited(data=voxels((20, 24))), bad, "2D"),
        Entry("frames", edited(data=voxels((*SHAPE, 12))), bad, "frames"),
        Entry("vector", edited(data=voxels((*SHAPE, 1, 3))), bad, "5D"),
        Entry("vector_two_frames", edited(data=voxels((*SHAPE, 2, 3))), bad, "5D"),
        Entry(
            "frame_beyond",
            edited(data=voxels((*SHAPE, 3))),
            bad,
            "frame 3",
            policy=ReadPolicy(frames=3),
        ),
    ]


def _extension(size: int) -> bytes:
    return np.array([size, 6], "<i4").tobytes() + bytes(8)


def _numbers() -> list[Entry]:
    bad, odd = "refused", "accepted"
    refuse = ReadPolicy(nonfinite="refuse")
    big = np.full(SHAPE, 2**63, np.uint64) + np.arange(7680, dtype=np.uint64).reshape(SHAPE)
    return [
        Entry("nan_all", edited(data=np.full(SHAPE, NAN, np.float32)), bad, "every voxel"),
        Entry("nan_refused", edited(data=damaged([NAN])), bad, "NaN", policy=refuse),
        Entry("inf_refused", edited(data=damaged([INF])), bad, "Inf", policy=refuse),
        Entry("nan_one", edited(data=damaged([NAN])), odd, "nonfinite"),
        Entry("inf_one", edited(data=damaged([-INF])), odd, "nonfinite"),
        Entry("zeros", edited(data=np.zeros(SHAPE, np.float32)), odd, "constant"),
        Entry("constant", edited(data=np.full(SHAPE, 7, np.int16)), odd, "constant"),
        Entry("float64_1e300", edited(data=damaged([1e300], np.float64)), odd, "nonfinite"),
        Entry("uint64", edited(data=big), odd, "precision"),
        Entry("int64", edited(data=(big >> 8).astype(np.int64)), odd, "precision"),
        Entry("slope_nan", field_edit("scl_slope", NAN), odd, "slope"),
        Entry("slope_inf", field_edit("scl_slope", INF), odd, "slope"),
        Entry("slope_1e38", field_edit("scl_slope", 1e38), bad, "slope"),
        Entry("inter_nan", edited(edits={"scl_slope": 2, "scl_inter": NAN}), bad, "intercept"),
        Entry("slope_negative", field_edit("scl_slope", -1), odd, "slope_negative"),
    ]


def _geometry() -> list[Entry]:
    bad, odd = "refused", "accepted"
    shifted = affine_with({(0, 3): 40})
    return [
        Entry("no_forms", no_forms(), bad, "no_forms"),
        Entry("no_forms_las", no_forms(), odd, "no_forms", policy=LAS),
        Entry("pixdim_zero", no_forms(x=0, y=1, z=1), bad, "spacing", policy=LAS),
        Entry("pixdim_nan", no_forms(x=1, y=NAN, z=1), bad, "spacing", policy=LAS),
        Entry("pixdim_zero_default", no_forms(x=0, y=1, z=1), bad, "no_forms"),
        Entry("pixdim_negative", no_forms(x=-1, y=1, z=2), odd, "spacing_negative", policy=LAS),
        Entry("pixdim_3mm", field_edit(("pixdim", (1, 2, 3)), 3), odd, "spacing_disagrees"),
        Entry("sform_nan", field_edit(("srow_y", 1), NAN), bad, "sform"),
        Entry("sform_inf_origin", field_edit(("srow_y", 3), INF), bad, "sform"),
        Entry("sform_singular", field_edit("srow_y", (1, 0.1, 0, 0)), bad, "right angles"),
        Entry("sform_zero_row", field_edit("srow_y", 0), bad, "sform"),
        Entry("sform_shear", edited(affine=affine_with({(0, 1): 0.6})), bad, "right angles"),
        Entry("forms_mirrored", form_pair(MIRRORED, AFFINE), bad, "apart"),
        Entry("forms_other_spacing", form_pair(AFFINE @ np.diag([2, 2, 2, 1]), AFFINE), bad, "ap"),
        Entry("forms_shifted", form_pair(shifted, AFFINE), odd, "forms_shifted"),
        Entry("quaternion_long", edited(qform=1, edits={"quatern_b": 1.5}), bad, "quaternion"),
        Entry("quaternion_nan", edited(qform=1, edits={"quatern_b": NAN}), bad, "qform"),
        Entry("qoffset_nan", edited(qform=1, edits={"qoffset_x": NAN}), bad, "qform"),
        Entry("qform_pixdim_0", edited(qform=1, edits={("pixdim", 2): 0}), bad, "spacing"),
        Entry("form_code_negative", field_edit("sform_code", -3), bad, "form codes"),
        Entry(
            "metres",
            edited(affine=AFFINE / [[1000], [1000], [1000], [1]], edits={"xyzt_units": 1}),
            odd,
            "units",
        ),
        Entry("spacing_1000", edited(affine=np.diag([1e3, 1e3, 1e3, 1])), odd, "spacing_unusual"),
        Entry(
            "spacing_1e-6", edited(affine=np.diag([1e-6, 1e-6, 1e-6, 1])), odd, "spacing_unusual"
        ),
        Entry("spacing_1e-20", edited(affine=np.diag([1e-20, 1e-20, 1e-20, 1])), bad, "spacing"),
        Entry("origin_far", edited(affine=affine_with({(0, 3): 1e9})), odd, "origin_far"),
        Entry("one_slice", edited(data=voxels((20, 24, 1))), odd, "single_slice"),
        Entry("one_voxel", edited(data=voxels((1, 1, 1))), odd, "single_slice"),
        Entry("shear_small", edited(affine=affine_with({(0, 1): 0.012})), odd, "shear"),
    ]


def _labels() -> list[Entry]:
    bad, odd = "refused", "accepted"

    def label(name, data, must, word, policy=ReadPolicy(), **options):  # noqa: B008 (frozen)
        return Entry(name, edited(data=data, **options), must, word, "label", policy)

    known = ReadPolicy(labels=(0, 1, 2))
    whole = np.arange(7680).reshape(SHAPE)
    return [
        label("label_half", lesion() * np.float32(0.5), bad, "0.5"),
        label("label_negative", values(-1, 0, 1, 7), bad, "0 to 255"),
        label("label_unknown", values(7), bad, "unknown labels", known),
        label("label_70000", lesion().astype(np.int32) * 70000, bad, "0 to 255"),
        label("label_is_image", voxels(), bad, "whole labels"),
        label("label_is_uint8_image", (whole % 200).astype(np.uint8), bad, "image"),
        label("label_nan", values(NAN), bad, "NaN"),
        label("label_0_255", lesion() * np.uint8(255), odd, "labels_255"),
        label("label_scaled", lesion(), odd, "labels_rounded", edits={"scl_slope": 0.99999}),
        label("label_empty", np.zeros(SHAPE, np.uint8), odd, "empty_mask"),
        label("label_frames", np.stack([lesion()] * 3, -1), bad, "frames"),
    ]


def _controls() -> list[Entry]:
    def good(name, build, kind="image", **policy):
        return Entry(name, build, "accepted", None, kind, ReadPolicy(**policy))

    conflict = form_pair(MIRRORED, AFFINE)
    names = ["plain.nii", "UPPER.NII.GZ", "a b.nii.gz", "größe-脳.nii.gz", "a\nb.nii.gz"]
    names += ["[a]*?.nii.gz", "a.b.c.nii.gz"]
    named = [
        good(f"name_{i}", saved(n, GOOD) if n.endswith(".nii") else packed(GOOD, name=n))
        for i, n in enumerate(names)
    ]
    return [
        *named,
        good(
            "two_members", saved("a.nii.gz", gzip.compress(GOOD[:999]) + gzip.compress(GOOD[999:]))
        ),
        good("big_endian", edited(order=">")),
        good("nifti2", edited(version=2)),
        good("nifti2_big_endian", edited(version=2, order=">")),
        good("scaled_int16", edited(data=voxels().astype(np.int16), edits={"scl_slope": 0.5})),
        good("slope_zero", field_edit("scl_slope", 0)),
        good("qfac_zero", edited(qform=1, sform=0, edits={("pixdim", 0): 0})),
        good("both_forms", edited(qform=1)),
        good("one_frame", edited(data=voxels((*SHAPE, 1)))),
        good("five_axes_of_one", edited(data=voxels((*SHAPE, 1, 1)))),
        good("frames_chosen", edited(data=voxels((*SHAPE, 3))), frames=2),
        good("frames_as_channels", edited(data=voxels((*SHAPE, 3))), frames="channels"),
        good("shear_harmless", edited(affine=affine_with({(0, 1): 0.002}))),
        good("extension_good", edited(between=_extension(16))),
        good("forms_sform", conflict, forms="sform"),
        good("forms_qform", conflict, forms="qform"),
        good("sform_nan_qform", edited(qform=1, edits={("srow_y", 1): NAN}), forms="qform"),
        good("mask", edited(data=lesion()), "label"),
        good("mask_float", edited(data=lesion().astype(np.float64)), "label"),
        good("mask_known", edited(data=lesion()), "label", labels=(1,)),
        good("link_good", lambda folder: _linked(folder)),
    ]


def _linked(folder: Path) -> Path:
    packed(GOOD, name="real.nii.gz")(folder)
    return link("real.nii.gz")(folder)
