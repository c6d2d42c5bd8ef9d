r"""From header to affine: sform, qform, or the read policy.

A NIfTI file may carry two maps from voxels to millimetres, the sform (12 numbers) and the qform
(a quaternion, an offset and the spacing), each with a code that is 0 when it is absent. Programs
differ in which one they believe, which flips left and right between two of them. Here both must
agree to a millimetre and half a voxel, but for a common shift, or the user says which one counts.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float
from nibabel.quaternions import fillpositive, quat2mat

from volumediff.data.grid import Grid, displacement_mm
from volumediff.data.header import Header
from volumediff.data.read_policy import ReadPolicy, remedy
from volumediff.data.remarks import Remark
from volumediff.errors import DataError

__all__ = ["affine_of", "defect", "placed"]

# Cosine between axes. Oblique scans stay far below 0.005 after rounding; above 0.02, about one
# degree, rows drift by more than two voxels over a hundred, and no tool agrees on the spacing.
SHEAR_TOLD, SHEAR_REFUSED = 0.005, 0.02
# Whoever stores spacing outside of this range has usually mistaken the unit.
USUAL_MM = (0.02, 20.0)
USUAL_ORIGIN_MM = 1e4
POSSIBLE_MM = (1e-7, 1e5)
POSSIBLE_ORIGIN_MM = 1e12

# The quaternion's first part follows from the other three; below this its square is rounding
# noise of float32 and counts as 0, as nibabel has it.
ROUNDING = float(-3 * np.finfo(np.float32).eps)

Affine = Float[np.ndarray, "4 4"]


def affine_of(header: Header, policy: ReadPolicy, path: Path) -> tuple[Affine, tuple[Remark, ...]]:
    """The affine in millimetres and what was noticed on the way.

    Raises:
        DataError: no form, forms in conflict, or an affine that is none
    """
    fields, findings = header.fields, []
    codes = {form: int(fields[f"{form}_code"]) for form in ("sform", "qform")}
    if min(codes.values()) < 0 or max(codes.values()) > 5:
        raise DataError(f"{path}: undefined form codes {codes}; export the file again.")
    present = [form for form, code in codes.items() if code > 0]
    if not present:
        stored = np.abs(header.fields["pixdim"][1:4].astype(np.float64))
        with np.errstate(over="ignore"):  # refused by `placed`
            stored *= header.mm_per_unit
        affine, assumed = placed(header.shape[:3], stored, policy, path)
        findings += assumed
    else:
        # a form that the user has ruled out need not be valid
        wanted = [policy.forms] if policy.forms in present else present
        forms = {form: _checked(form, header, path) for form in wanted}
        affine = forms.get("sform", forms.get("qform"))
        if len(forms) == 2:
            findings += _compared(forms["sform"], forms["qform"], header, path)
    findings += _remarks(affine, header, bool(present))
    return affine, tuple(findings)


def _sform(header: Header) -> Affine:
    rows = [header.fields[f"srow_{axis}"].astype(np.float64) for axis in "xyz"]
    affine = np.vstack([*rows, [0.0, 0.0, 0.0, 1.0]])
    affine[:3] *= header.mm_per_unit
    return affine


def _qform(header: Header) -> Affine | str:
    fields = header.fields
    bcd = np.array([fields[f"quatern_{q}"] for q in "bcd"], np.float64)
    spacing = fields["pixdim"][1:4].astype(np.float64)
    offset = np.array([fields[f"qoffset_{axis}"] for axis in "xyz"], np.float64)
    handed = float(fields["pixdim"][0])
    if not np.isfinite([*bcd, *spacing, *offset, handed]).all():
        return "it holds NaN or Inf"
    if bcd @ bcd > 1 + 1e-5:  # float32 rounding of a unit quaternion
        return f"its quaternion is longer than 1 ({np.sqrt(bcd @ bcd):.4g})"
    if spacing.min() <= 0:
        return f"its spacing {spacing.tolist()} is not positive"
    bcd /= max(1.0, float(np.sqrt(bcd @ bcd)))
    affine = np.eye(4)
    affine[:3, :3] = quat2mat(fillpositive(bcd, w2_thresh=ROUNDING)) * spacing
    affine[:3, 2] *= -1.0 if handed < 0 else 1.0
    affine[:3, 3] = offset
    affine[:3] *= header.mm_per_unit
    return affine


def _checked(form: str, header: Header, path: Path) -> Affine:
    with np.errstate(over="ignore"):  # what overflows is refused below
        affine = _sform(header) if form == "sform" else _qform(header)
    reason = affine if isinstance(affine, str) else defect(affine)
    if reason is None:
        return affine
    other = "qform" if form == "sform" else "sform"
    usable = int(header.fields[f"{other}_code"]) > 0
    advice = remedy(f"forms={other}") if usable else "export the file again"
    raise DataError(f"{path}: expected a usable {form}, but {reason}; {advice}.")


def defect(affine: Affine) -> str | None:
    """Why an affine is none that a scanner could have, in words; None for a usable one."""
    if not np.isfinite(affine).all():
        return "it holds NaN or Inf"
    if np.abs(affine).max() > POSSIBLE_ORIGIN_MM:
        return f"it holds {np.abs(affine).max():.4g} mm"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = POSSIBLE_MM
    if spacing.min() < low or spacing.max() > high:
        return f"it has a spacing of {_list(spacing)} mm"
    if _shear(affine) > SHEAR_REFUSED:
        return (
            f"its axes are not at right angles (cosine {_shear(affine):.3g}; resample the volume "
            "to a grid with right angles)"
        )
    return None


def _shear(affine: Affine) -> float:
    """Largest cosine between two axes; 1 for a singular affine."""
    unit = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return float(np.abs(np.triu(unit.T @ unit, 1)).max())


def _compared(sform: Affine, qform: Affine, header: Header, path: Path) -> list[Remark]:
    a, b = Grid(header.shape[:3], sform), Grid(header.shape[:3], qform)
    tolerance = min(1.0, 0.5 * min(a.spacing_mm))
    distance = displacement_mm(a, b)
    if distance <= tolerance:
        return []
    shifted = qform.copy()
    shifted[:3, 3] = sform[:3, 3]
    if displacement_mm(a, Grid(header.shape[:3], shifted)) <= tolerance:
        text = f"sform and qform differ by a shift of {distance:.4g} mm: sform used"
        return [Remark("warning", "forms_shifted", text)]
    raise DataError(
        f"{path}: sform ({a.axes}, {_list(a.spacing_mm)} mm) and qform ({b.axes}, "
        f"{_list(b.spacing_mm)} mm) are up to {distance:.4g} mm apart; "
        f"{remedy('forms=sform', 'forms=qform')}."
    )


def placed(
    shape: tuple[int, int, int],
    spacing_mm: Float[np.ndarray, "3"],
    policy: ReadPolicy,
    path: Path,
) -> tuple[Affine, tuple[Remark, ...]]:
    """An affine for voxels that say nothing about their place, and the remark on it.

    Axes are those of the policy; the world's origin is at the centre of the volume.

    Raises:
        DataError: the policy makes no assumption, or the spacing is none
    """
    if policy.no_forms == "refuse":
        raise DataError(
            f"{path}: has no orientation, and programs differ in what they assume; "
            f"{remedy('no_forms=ras', 'no_forms=las', 'no_forms=lps')}."
        )
    low, high = POSSIBLE_MM
    # written so that NaN is refused, too
    if not (spacing_mm.min() >= low and spacing_mm.max() <= high):
        raise DataError(
            f"{path}: expected a positive spacing, pixdim says {_list(spacing_mm)}; set it."
        )
    signs = [1.0 if axis in "ras" else -1.0 for axis in policy.no_forms]
    affine = np.diag([*(spacing_mm * signs), 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    text = f"no orientation in the file: axes {policy.no_forms.upper()} assumed by read policy"
    return affine, (Remark("warning", "no_forms", text),)


def _remarks(affine: Affine, header: Header, has_form: bool) -> list[Remark]:
    found = []
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    stored = header.fields["pixdim"][1:4].astype(np.float64)
    with np.errstate(over="ignore"):  # what overflows disagrees
        stored_mm = stored * header.mm_per_unit
    if has_form and not np.allclose(stored_mm, spacing, rtol=1e-2, atol=0):
        text = f"pixdim says {_list(stored)}, the form {_list(spacing)} mm: the form is used"
        found.append(Remark("warning", "spacing_disagrees", text))
    if not has_form and stored.min() < 0:
        text = f"negative pixdim {_list(stored)}: absolute values used"
        found.append(Remark("warning", "spacing_negative", text))
    if spacing.min() < USUAL_MM[0] or spacing.max() > USUAL_MM[1]:
        text = f"unusual spacing {_list(spacing)} mm; is the unit right?"
        found.append(Remark("warning", "spacing_unusual", text))
    if np.abs(affine[:3, 3]).max() > USUAL_ORIGIN_MM:
        text = f"origin at {_list(affine[:3, 3])} mm"
        found.append(Remark("warning", "origin_far", text))
    if _shear(affine) > SHEAR_TOLD:
        text = f"axes are not quite at right angles (cosine {_shear(affine):.3g})"
        found.append(Remark("warning", "shear", text))
    if min(header.shape[:3]) == 1:
        found.append(Remark("info", "single_slice", "one voxel thick along an axis"))
    return found


def _list(values: np.ndarray | tuple[float, ...]) -> str:
    return "/".join(f"{v:.4g}" for v in values)
