"""From stored numbers to intensities (float32) or labels (uint8)."""

import math
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from volumediff.data.read_policy import ReadPolicy, remedy
from volumediff.data.remarks import Remark
from volumediff.errors import DataError

__all__ = ["intensities", "labels"]

# More values than this are intensities: the richest label sets in use have about 120.
MOST_LABELS = 150
# float32 holds integers exactly up to here
EXACT_INTEGER = 2**24


def intensities(
    raw: Shaped[np.ndarray, "c d h w"],
    *,
    slope: float,
    inter: float,
    policy: ReadPolicy,
    path: Path,
) -> tuple[Float[np.ndarray, "c d h w"], list[Remark]]:
    """Scaled values in float32; non-finite voxels are filled or refused as the policy says.

    Arguments:
        raw: numbers as they are stored; changed in place where they are float32 already
    """
    findings, scaled = [], (slope, inter) != (1.0, 0.0)
    with np.errstate(over="ignore", invalid="ignore"):
        out = _scaled(raw, slope, inter) if scaled else raw.astype(np.float32, copy=False)
    if raw.dtype.kind in "iu" and raw.dtype.itemsize > 2:
        largest = max(abs(int(raw.max())), abs(int(raw.min())))
        if largest > EXACT_INTEGER:
            text = f"integers up to {largest} are rounded to 24 bits"
            findings.append(Remark("warning", "precision", text))
    low, high = float(out.min()), float(out.max())
    if not (math.isfinite(low) and math.isfinite(high)):
        bad = ~np.isfinite(out)
        count = int(bad.sum())
        damaged = int((~np.isfinite(raw)).sum()) if scaled else count
        if count > damaged:
            raise DataError(
                f"{path}: scaling by slope {slope:g} leaves {count - damaged} of {out.size} "
                "voxels beyond float32; correct scl_slope."
            )
        if count == out.size:
            raise DataError(
                f"{path}: expected intensities, every voxel is NaN or Inf; export again."
            )
        if policy.nonfinite == "refuse":
            raise DataError(
                f"{path}: {count} voxels are NaN or Inf; repair them, or "
                f"{remedy('nonfinite=fill')}."
            )
        low, high = float(out[~bad].min()), float(out[~bad].max())
        out[bad] = low
        text = f"{count} voxels NaN, Inf or beyond float32, filled with the minimum {low:g}"
        findings.append(Remark("warning", "nonfinite", text))
    if low == high:
        findings.append(Remark("warning", "constant", f"all voxels are {low:g}"))
    return out, findings


def _scaled(
    raw: Shaped[np.ndarray, "c d h w"], slope: float, inter: float
) -> Float[np.ndarray, "c d h w"]:
    out = np.empty(raw.shape, np.float32)
    for channel, plane in np.ndindex(raw.shape[:2]):  # no second volume in float64
        out[channel, plane] = raw[channel, plane].astype(np.float64) * slope + inter
    return out


def labels(
    raw: Shaped[np.ndarray, "c d h w"],
    *,
    slope: float,
    inter: float,
    policy: ReadPolicy,
    path: Path,
) -> tuple[UInt8[np.ndarray, "c d h w"], list[Remark]]:
    """Whole numbers from 0 to 255, of the policy's set when it names one."""
    findings = []
    values = np.unique(raw)
    if not np.isfinite(values).all():
        raise DataError(f"{path}: expected labels, got NaN or Inf; repair the label file.")
    scaled = values.astype(np.float64) * slope + inter
    whole = np.rint(scaled)
    error = float(np.abs(scaled - whole).max())
    # a slope rounds labels by up to half of itself (of float32), and keeps different ones apart
    rounding = 0.5001 * slope if 0 < slope < 0.5 and len(np.unique(whole)) == len(whole) else 0.0
    if error > max(policy.label_rounding, rounding):
        worst = scaled[np.abs(scaled - whole).argmax()]
        raise DataError(
            f"{path}: expected whole labels, got {worst:g}; threshold it if it is a probability, "
            "check that it is not an image, or, where labels were rounded, "
            f"{remedy(f'label_rounding={error:.2g}')}."
        )
    if error:
        text = f"labels off by up to {error:.2g}, rounded"
        findings.append(Remark("warning", "labels_rounded", text))
    if whole.min() < 0 or whole.max() > 255:
        raise DataError(
            f"{path}: expected labels from 0 to 255, got {whole.min():g} to {whole.max():g}; "
            "renumber them."
        )
    if set(whole.tolist()) <= {0.0, 255.0} and 255.0 in whole and 255 not in (policy.labels or ()):
        whole = whole / 255
        findings.append(Remark("warning", "labels_255", "0/255 mask read as 0/1"))
    if len(whole) > MOST_LABELS:
        raise DataError(
            f"{path}: {len(whole)} different values are an image, not labels; check which file "
            "is given as label."
        )
    if policy.labels is not None:
        unknown = sorted({int(v) for v in whole} - set(policy.labels) - {0})
        if unknown:
            raise DataError(
                f"{path}: unknown labels {unknown}, expected {sorted(policy.labels)}; correct the "
                f"file, or {remedy(f'labels={sorted({*policy.labels, *unknown})}')}."
            )
    if whole.max() == 0:
        findings.append(Remark("warning", "empty_mask", "no voxel is labelled"))
    table = whole.astype(np.uint8)
    out = np.empty(raw.shape, np.uint8)
    for channel, plane in np.ndindex(raw.shape[:2]):
        out[channel, plane] = table[np.searchsorted(values, raw[channel, plane])]
    return out, findings
