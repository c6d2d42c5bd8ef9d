"""How well `volumediff prepare` finds a known affine map, and what labels keep on the way.

python benchmarks/prepare.py [--peer]            phantoms of the MNI152 at 2, 3 and 4 mm
python benchmarks/prepare.py --labels RAW --prepared OUT
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage

from volumediff.data.alignment_geometry import Alignment, decomposed
from volumediff.data.alignment_template import Template, mni152
from volumediff.data.grid import Grid
from volumediff.data.itk import to_itk
from volumediff.data.registration import RegistrationVolume, align_affine
from volumediff.data.survey import find_cases
from volumediff.data.volume import read

# Native to template: turned, sheared, smaller than the template, as brains are.
TRUE = np.array(
    [[1.08, 0.05, -0.03, 6.0], [-0.06, 1.12, 0.10, -9.0], [0.02, -0.12, 1.10, 12.0], [0, 0, 0, 1]]
)
FIELD_MM = (189, 224, 189)
LPS = np.diag([-1.0, -1, 1, 1])


def phantom(template: Template, spacing: float) -> RegistrationVolume:
    """The template's brain as a scanner with cubic voxels sees it, with a mask of half voxels."""
    shape = tuple(int(np.ceil(mm / spacing)) for mm in FIELD_MM)
    turn = np.radians(8.0)
    affine = np.eye(4)
    affine[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    affine[:3, :3] *= spacing
    affine[:3, 3] = np.linalg.inv(TRUE)[:3] @ [0, -20, 10, 1]
    affine[:3, 3] -= affine[:3, :3] @ (np.array(shape) - 1) / 2
    parts = int(np.ceil(spacing))
    means = []
    for x in (template.x * template.object, template.object.astype(np.float32)):
        total = np.zeros(shape)
        for offset in np.ndindex(parts, parts, parts):
            moved = affine.copy()
            moved[:3, 3] += affine[:3, :3] @ ((np.array(offset) + 0.5) / parts - 0.5)
            index = np.linalg.inv(template.grid.affine) @ TRUE @ moved
            total += ndimage.affine_transform(
                x, index[:3, :3], index[:3, 3], output_shape=shape, order=1
            )
        means.append(total / parts**3)
    mask = means[1] >= 0.5
    return RegistrationVolume(
        (means[0] * mask * 700).astype(np.float32), mask, Grid(shape, affine)
    )


def peer(moving: RegistrationVolume, reference: RegistrationVolume) -> np.ndarray:
    """SimpleITK's registration with Mattes' mutual information, three levels."""
    import SimpleITK as sitk

    near = ndimage.binary_dilation(reference.object, iterations=6).astype(np.uint8)
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(32)
    method.SetMetricFixedMask(to_itk(near, reference.grid))
    method.SetMetricSamplingStrategy(method.RANDOM)
    method.SetMetricSamplingPercentagePerLevel([1.0, 0.4, 0.05], 42)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetShrinkFactorsPerLevel([8, 4, 1])
    method.SetSmoothingSigmasPerLevel([4, 2, 0])
    method.SmoothingSigmasAreSpecifiedInPhysicalUnitsOn()
    method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-3, 300)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetNumberOfThreads(1)
    fixed = to_itk((reference.x * reference.object).astype(np.float32), reference.grid)
    other = to_itk(moving.x, moving.grid)
    moments = sitk.CenteredTransformInitializerFilter.MOMENTS
    start = sitk.CenteredTransformInitializer(fixed, other, sitk.AffineTransform(3), moments)
    method.SetInitialTransform(start, True)
    method.Execute(fixed, other)
    found = sitk.AffineTransform(start)
    linear, centre = np.array(found.GetMatrix()).reshape(3, 3), np.array(found.GetCenter())
    matrix = np.eye(4)
    matrix[:3, :3] = linear
    matrix[:3, 3] = centre + np.array(found.GetTranslation()) - linear @ centre
    return np.linalg.inv(LPS @ matrix @ LPS)


def phantoms(template: Template, *, with_peer: bool) -> None:
    reference = RegistrationVolume(template.x, template.object, template.grid)
    points = np.argwhere(template.object)[::101] @ template.grid.affine[:3, :3].T
    points = np.c_[points + template.grid.affine[:3, 3], np.ones(len(points))]
    for spacing in (4.0, 3.0, 2.0):
        moving = phantom(template, spacing)
        found = {"volumediff": align_affine(moving, reference, skull=False)}
        if with_peer:
            found["SimpleITK"] = peer(moving, reference)
        for name, matrix in found.items():
            wrong = matrix @ np.linalg.inv(TRUE)
            away = np.linalg.norm((points @ (wrong - np.eye(4)).T)[:, :3], axis=1)
            scales = " ".join(f"{100 * (s - 1):+.1f}" for s in decomposed(wrong).scales)
            volume = 100 * (np.linalg.det(wrong) - 1)
            print(
                f"{spacing:g} mm {name}: points {away.mean():.2f} mm, at most {away.max():.2f}, "
                f"volume {volume:+.1f} %, scales {scales} %"
            )


def labels(raw: Path, prepared: Path) -> None:
    import json

    for case in find_cases(raw):
        path = prepared / case.id / f"{case.id}_transform.json"
        if case.label is None or not path.is_file():
            continue
        record = json.loads(path.read_text(encoding="utf-8"))
        alignment = Alignment.from_json(record["channels"][record["label_of"]])
        y = (read(case.label, kind="label").array > 0).astype(np.uint8)
        home = alignment.back_labels(alignment.apply_labels(y))
        ml = abs(float(np.linalg.det(alignment.native.affine[:3, :3]))) / 1000
        dice = 2 * (y & home).sum() / (y.sum() + home.sum())
        print(f"{case.id}: {y.sum() * ml:.2f} ml, back {home.sum() * ml:.2f} ml, Dice {dice:.3f}")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("--peer", action="store_true", help="SimpleITK beside it")
    words.add_argument("--labels", type=Path, help="data set with labels")
    words.add_argument("--prepared", type=Path, help="what prepare made of it")
    given = words.parse_args()
    if given.labels:
        labels(given.labels, given.prepared)
    else:
        phantoms(mni152(), with_peer=given.peer)
