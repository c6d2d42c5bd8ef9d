"""Raw volumes to a template and back: the oracle is an affine map that the test chose itself."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from tiny_app import oblique, program

from volumediff.alignment import prepare as preparing
from volumediff.alignment.aligning import BrainMask, Steps
from volumediff.alignment.quality import Quality, all_flags, flags
from volumediff.data.alignment_geometry import Alignment, decomposed
from volumediff.data.alignment_template import Template, mni152, template_from
from volumediff.data.bias_field import bias_field
from volumediff.data.brain_masks import brain_mask_of
from volumediff.data.cases import Case
from volumediff.data.check import check, has_errors
from volumediff.data.grid import Grid
from volumediff.data.itk import to_itk
from volumediff.data.mutual_information import Information, mutual_information
from volumediff.data.registration import RegistrationVolume, align_affine, align_rigid
from volumediff.data.seen import Roster, Seen
from volumediff.data.survey import find_cases
from volumediff.data.volume import read, write
from volumediff.errors import DataError
from volumediff.evaluation.leakage import keep, leakage
from volumediff.evaluation.truths import Truth
from volumediff.samples.preparation_record import RunPreparation
from volumediff.storage.records import write as write_record

__all__ = ["program"]  # fixture

# Native to template: turned, sheared, smaller than the template, as brains are.
TRUE = np.array(
    [[1.08, 0.05, -0.03, 6.0], [-0.06, 1.12, 0.10, -9.0], [0.02, -0.12, 1.10, 12.0], [0, 0, 0, 1]]
)


@pytest.fixture(scope="module")
def fine():
    return mni152().at(2.0)


@pytest.fixture(scope="module")
def template(fine):
    return fine.at(4.0)


def native_affine(spacing=3.5) -> np.ndarray:
    """Oblique axes that point to L, P, S, with the middle of the brain in the field of view."""
    affine = oblique("LPS", degrees=8.0, spacing=(spacing,) * 3)
    centre = np.linalg.inv(TRUE)[:3] @ [0, -20, 10, 1]
    affine[:3, 3] = centre - affine[:3, :3] @ (np.array(SHAPE) - 1) / 2
    return affine


SHAPE = (54, 64, 54)


def seen(x: np.ndarray, grid: Grid, matrix: np.ndarray, affine: np.ndarray, shape=SHAPE):
    """The template as a scanner would see it; SciPy's interpolation, not the engine's."""
    index = np.linalg.inv(grid.affine) @ matrix @ affine
    return ndimage.affine_transform(x, index[:3, :3], index[:3, 3], output_shape=shape, order=1)


def voxel_means(x, grid: Grid, matrix, affine, shape, parts=2):
    """The mean over each voxel, as a scanner measures it."""
    total = 0.0
    for offset in np.ndindex(parts, parts, parts):
        moved = affine.copy()
        moved[:3, 3] += affine[:3, :3] @ ((np.array(offset) + 0.5) / parts - 0.5)
        total = total + seen(x, grid, matrix, moved, shape)
    return total / parts**3


def error_mm(found, wanted, template: Template) -> float:
    """The mean distance over the brain between where two maps put its voxels."""
    points = np.argwhere(template.object)[::7] @ template.grid.affine[:3, :3].T
    native = (
        np.linalg.inv(wanted) @ np.c_[points + template.grid.affine[:3, 3], np.ones(len(points))].T
    )
    return float(np.linalg.norm(((found - wanted) @ native)[:3], axis=0).mean())


def scan(x: np.ndarray, affine: np.ndarray, mask: np.ndarray) -> RegistrationVolume:
    """Canonical, as `read` would return it."""
    moved = nib.as_closest_canonical(nib.Nifti1Image(x, affine))
    marked = nib.as_closest_canonical(nib.Nifti1Image(mask.astype(np.uint8), affine))
    grid = Grid(moved.shape, moved.affine)
    return RegistrationVolume(
        np.asarray(moved.dataobj, np.float32), np.asarray(marked.dataobj) > 0, grid
    )


# ------------------------------------------------------------------ geometry


def test_itk_and_nibabel_agree_where_voxels_lie():
    affine = oblique("LSP", degrees=25.0, spacing=(1.0, 2.0, 3.0))
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    image = to_itk(x, Grid((2, 3, 4), affine))
    for index in ((0, 0, 0), (1, 2, 3), (1, 0, 2)):
        ras = affine @ [*index, 1]
        lps = image.TransformIndexToPhysicalPoint(index)
        np.testing.assert_allclose(lps, (-ras[0], -ras[1], ras[2]), atol=1e-9)
        assert image[index] == x[index]


def test_an_affine_map_falls_into_its_parts():
    a = np.radians(30)
    turn = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    shear = np.array([[1, 0.1, 0.2], [0, 1, -0.3], [0, 0, 1]])
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ shear @ np.diag([1.1, 0.9, 1.2])
    parts = decomposed(matrix)
    np.testing.assert_allclose(parts.scales, (1.1, 0.9, 1.2))
    np.testing.assert_allclose(parts.shears, (0.1, 0.2, -0.3), atol=1e-12)
    assert parts.rotation_degrees == pytest.approx(30)
    assert not parts.mirrored
    assert decomposed(np.diag([-1.0, 1, 1, 1])).mirrored


def blob(shape, affine, centre_mm, radius_mm) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    away = index @ affine[:3, :3].T + affine[:3, 3] - centre_mm
    return (np.linalg.norm(away, axis=-1) < radius_mm).astype(np.uint8)


def centre_of(mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ ndimage.center_of_mass(mask) + affine[:3, 3]


def test_a_blob_goes_to_the_template_and_comes_home(template):
    affine = native_affine(2.0)
    native = Grid((90, 100, 90), affine)
    alignment = Alignment(native, template.at(2.0).grid, TRUE)
    moved = alignment.moved
    place = affine[:3, :3] @ [45, 50, 45] + affine[:3, 3]
    mask = blob(moved.shape, np.linalg.inv(TRUE) @ moved.affine, place, 12.0)
    there = alignment.apply_labels(mask[None])[0]
    goal = (TRUE @ [*place, 1])[:3]
    assert np.linalg.norm(centre_of(there, alignment.template.affine) - goal) < 0.3
    ml = mask.sum() * 8 / 1000
    assert there.sum() * 8 / 1000 == pytest.approx(ml * np.linalg.det(TRUE[:3, :3]), rel=0.03)
    assert alignment.volume_scale == pytest.approx(np.linalg.det(TRUE[:3, :3]))
    home = alignment.back_labels(there[None])[0]
    assert 2 * (home & mask).sum() / (home.sum() + mask.sum()) > 0.95
    assert home.sum() * 8 / 1000 == pytest.approx(ml, rel=0.02)


def test_lesions_of_a_few_voxels_keep_their_volume(template):
    """A majority of resampled memberships lost a third of them, and half on the way home."""
    rng = np.random.default_rng(0)
    native = Grid((60, 60, 60), native_affine(2.0))
    voxels = np.diag([1.15, 1.15, 1.15, 1])
    voxels[:3, 3] = (0.13, 0.21, 0.37)  # no ties
    there = Grid((60, 60, 60), TRUE @ native.affine @ voxels)
    alignment = Alignment(native, there, TRUE)
    index = np.stack(np.meshgrid(*map(np.arange, native.shape), indexing="ij"), -1)
    y = np.zeros(native.shape, np.uint8)
    for label, centre in enumerate(rng.uniform(8, 48, (120, 3))):
        y[((index - centre) ** 2).sum(-1) < 1.3**2] = 1 + label % 2
    moved = alignment.apply_labels(y[None])
    home = alignment.back_labels(moved)
    factor = 1.15**3
    for label in (1, 2):
        count = (y == label).sum()
        assert (moved == label).sum() * factor == pytest.approx(count, rel=0.08)
        assert (home == label).sum() == pytest.approx(count, rel=0.08)
    # SciPy's closest voxel
    matrix = np.linalg.inv(alignment.moved.affine) @ there.affine
    closest = ndimage.affine_transform(y, matrix[:3, :3], matrix[:3, 3], order=0)
    np.testing.assert_array_equal(moved[0], closest)


def test_an_alignment_survives_json(template):
    one = Alignment(Grid(SHAPE, native_affine()), template.grid, TRUE)
    two = Alignment.from_json(json.loads(json.dumps(one.to_json())))
    np.testing.assert_array_equal(one.moved.affine, two.moved.affine)
    assert two.to_json() == json.loads(json.dumps(one.to_json()), object_hook=_tuples)


def _tuples(values):
    return {k: tuple(v) if k == "shape" else v for k, v in values.items()}


# -------------------------------------------------------------- registration


def test_mutual_information_of_bijections_and_of_independent_values():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 16, 20_000).astype(np.float64)
    assert mutual_information(a, -3 * a + 7) == pytest.approx(1)
    assert mutual_information(a, rng.permutation(a)) < 0.01
    # b tells a's parity: H(b) = log 2 is shared, H(a) = log 16
    assert mutual_information(a, a % 2) == pytest.approx(2 * np.log(2) / np.log(32), abs=1e-3)
    assert mutual_information(np.zeros(5), np.ones(5)) == 0


def test_the_derivative_of_the_information_is_its_slope():
    rng = np.random.default_rng(2)
    x = ndimage.gaussian_filter(rng.normal(size=(14, 15, 16)), 2)
    affine = oblique("RAS", degrees=10.0, spacing=(2.0, 3.0, 2.5))
    index = np.argwhere(np.ones((8, 8, 8), bool)) + 3
    points = index @ affine[:3, :3].T + affine[:3, 3]
    codes = rng.integers(0, 32, len(points))
    found = Information(points, codes, x, Grid(x.shape, affine), float(x.min()), float(x.max()))
    matrix = np.eye(4)
    matrix[:3] += rng.normal(size=(3, 4)) * [0.01, 0.01, 0.01, 0.7]
    _, slope = found.at(matrix)
    direction = np.zeros((4, 4))
    direction[:3] = rng.normal(size=(3, 4)) * [0.01, 0.01, 0.01, 0.2]
    h = 1e-4
    ends = [found.at(matrix + sign * h * direction)[0] for sign in (1, -1)]
    assert (ends[0] - ends[1]) / (2 * h) == pytest.approx((slope * direction[:3]).sum(), rel=1e-3)
    # what lies outside says nothing, and nothing at all is no information
    matrix[0, 3] = 900
    assert (found.seen(matrix), found.at(matrix)[0]) == (0, 0)


@pytest.mark.parametrize("spacing", [4.0, 2.5])
def test_a_known_affine_map_is_found_whatever_the_voxels(template, spacing):
    """Without the same blur in both volumes, the aligned one came out 3 % too large."""
    sharp = mni152()
    affine = native_affine(spacing)
    shape = tuple(round(3.5 / spacing * n) for n in SHAPE)
    affine[:3, 3] += affine[:3, :3] @ (np.array(SHAPE) - shape) / 2
    mask = voxel_means(sharp.object.astype(np.float32), sharp.grid, TRUE, affine, shape) >= 0.5
    x = voxel_means(sharp.x, sharp.grid, TRUE, affine, shape) * mask * 700
    moving = scan(x.astype(np.float32), affine, mask)
    found = align_affine(
        moving, RegistrationVolume(sharp.x, sharp.object, sharp.grid), skull=False
    )
    assert error_mm(found, TRUE, template) < 0.2
    assert np.linalg.det(found[:3, :3]) == pytest.approx(np.linalg.det(TRUE[:3, :3]), rel=0.01)


def head_around(x, mask, affine, spacing):
    """Skull, scalp and a neck around a brain."""
    away = ndimage.distance_transform_edt(~mask, sampling=(spacing,) * 3)
    index = np.stack(np.meshgrid(*map(np.arange, mask.shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    low = centre_of(mask, affine)
    neck = np.linalg.norm((world - low)[..., :2], axis=-1) < 55
    neck &= world[..., 2] < low[2] - 40
    scalp = (away > 6) & (away <= 14)
    return np.where(mask, x, np.where(scalp, 650, np.where(neck & (away > 6), 400, 0)))


@pytest.fixture(scope="module")
def head(fine):
    affine = native_affine()
    affine[2, 3] -= 40
    shape = (*SHAPE[:2], SHAPE[2] + 12)
    mask = seen(fine.object.astype(np.float32), fine.grid, TRUE, affine, shape) >= 0.5
    x = seen(fine.x, fine.grid, TRUE, affine, shape) * mask * 700
    whole = head_around(x, mask, affine, 3.5).astype(np.float32)
    return scan(whole, affine, whole > 50)


def test_a_head_is_registered_to_a_template_without_skull(head, template):
    reference = RegistrationVolume(template.x, template.object, template.grid)
    found = align_affine(head, reference, skull=True)
    assert error_mm(found, TRUE, template) < 1.5
    np.testing.assert_array_equal(found, align_affine(head, reference, skull=True))


def test_a_search_that_runs_away_stops_where_it_is_flagged(template):
    """Noise has no optimum; the bounds hold whatever the search does."""
    rng = np.random.default_rng(0)
    x = rng.normal(100, 20, template.grid.shape).astype(np.float32)
    noise = RegistrationVolume(x, np.ones(x.shape, bool), template.grid)
    found = align_affine(
        noise, RegistrationVolume(template.x, template.object, template.grid), skull=True
    )
    parts = decomposed(np.linalg.inv(found))
    assert all(1 / 1.61 < s < 1.61 for s in parts.scales)
    assert max(map(abs, parts.shears)) < 0.41


def test_another_contrast_on_another_grid_is_registered_rigidly(fine):
    a = np.radians(4)
    motion = np.eye(4)
    motion[:2, :2] = [[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]]
    motion[:3, 3] = (3.0, -2.0, 4.0)
    first = native_affine(2.5)
    second = oblique("RAS", degrees=-3.0, spacing=(2.0, 2.0, 5.0))
    second[:3, 3] = (-80, -110, -60)
    shapes = (72, 86, 70), (80, 100, 30)
    bodies = []
    for grid, matrix, shape, invert in (
        (first, TRUE, shapes[0], False),
        (second, TRUE @ motion, shapes[1], True),
    ):
        mask = seen(fine.object.astype(np.float32), fine.grid, matrix, grid, shape) >= 0.5
        x = seen(fine.x, fine.grid, matrix, grid, shape)
        x = np.where(mask, 900 - 700 * x if invert else 700 * x, 0).astype(np.float32)
        bodies.append(scan(x, grid, mask))
    found = align_rigid(bodies[1], bodies[0])
    assert error_mm(TRUE @ found, TRUE @ motion, fine) < 1.0
    np.testing.assert_allclose(found[:3, :3] @ found[:3, :3].T, np.eye(3), atol=1e-9)


def test_volumes_that_never_meet_are_refused(template):
    x = np.zeros((6, 6, 6), np.float32)
    x[2:4, 2:4, 2:4] = 1
    far = np.eye(4)
    far[:3, 3] = 5000
    one = RegistrationVolume(x, x > 0, Grid((6, 6, 6), far))
    with pytest.raises(DataError, match="do not overlap"):
        align_rigid(one, RegistrationVolume(template.x, template.object, template.grid))
    with pytest.raises(DataError, match="no foreground"):
        align_rigid(RegistrationVolume(x, x > 5, one.grid), one)


# ---------------------------------------------------------------- bias field


def test_n4_takes_a_known_field_out(fine):
    template = fine.at(4.0)
    shape = template.grid.shape
    axes = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    true = np.exp(0.35 * axes[0] - 0.25 * axes[1] + 0.2 * axes[2] ** 2).astype(np.float32)
    x, mask = 600 * template.x, template.object
    white = x > np.percentile(x[mask], 75)
    white &= x < np.percentile(x[mask], 95)
    found = bias_field(x * true, template.grid, mask=mask)

    def spread(values):
        return values[white].std() / values[white].mean()

    before, after = spread(x * true), spread(x * true / found)
    assert before > 3 * spread(x)
    assert after < 0.4 * before
    assert (
        np.corrcoef(np.log(found[mask]), np.log(true[mask]))[0, 1] > 0.93
    )  # a mesh of 50 mm follows the rest
    assert np.log(found[mask]).mean() == pytest.approx(0, abs=0.02)


def test_n4_refuses_hounsfield_units_and_empty_masks(template):
    x = np.where(template.object, 1000 * template.x - 600, -1000).astype(np.float32)
    with pytest.raises(DataError, match=r"positive intensities.*leave N4 out"):
        bias_field(x, template.grid, mask=template.object)
    with pytest.raises(DataError, match="empty mask"):
        bias_field(x, template.grid, mask=template.object & False)


# -------------------------------------------------------------------- checks


def quality(**changes) -> Quality:
    good = {
        "dice": 0.95,
        "covered": 1.0,
        "before": 0.02,
        "after": 0.1,
        "scales": (1.1, 1.1, 1.1),
        "shears": (0.0, 0.0, 0.0),
        "rotation_degrees": 5.0,
        "mirrored": False,
        "volume_scale": 1.3,
        "native_ml": 1400.0,
        "bias": {"T1w": (0.8, 1.2), "ADC": None},
    }
    return Quality(**{**good, **changes})


WRONG = {
    "Dice 0.50": {"dice": 0.5},
    "shows 60.0%": {"covered": 0.6},
    "scales 1.10, 1.10, 1.70": {"scales": (1.1, 1.1, 1.7)},
    # where a search with a rim of 12 mm ended: the brain's border on the scalp, 11 mm off
    "volume scale 0.73": {"scales": (0.88, 0.95, 0.88), "volume_scale": 0.73},
    "shear 0.40 > 0.20": {"shears": (0.0, -0.4, 0.0)},
    "rotation 90": {"rotation_degrees": 90.0},
    "exchanged": {"mirrored": True},
    "similarity fell": {"before": 0.2, "after": 0.1},
    "similarity 0.040 < 0.045": {"after": 0.04},
    "bias field of T1w": {"bias": {"T1w": (0.2, 2.0)}},
}


@pytest.mark.parametrize(("text", "changes"), WRONG.items(), ids=WRONG)
def test_what_looks_wrong_is_flagged_and_nothing_else(text, changes):
    assert flags(quality()) == []
    assert flags(quality(dice=None)) == []
    found = flags(quality(**changes))
    assert len(found) == 1
    assert text in found[0]


def test_a_case_unlike_its_batch_is_flagged():
    batch = {f"c{i}": quality(after=0.1 + 0.001 * i) for i in range(9)}
    assert all_flags(batch) == {}
    assert list(all_flags({**batch, "odd": quality(after=0.05)})) == ["odd"]
    values = quality(dice=None)
    assert Quality.from_json(json.loads(json.dumps(values.to_json()))) == values


# ----------------------------------------------------------------- data sets


def write_raw(root: Path, fine: Template, *, name="p1", spacing=4.0) -> dict[str, np.ndarray]:
    """A T1w with skull-free brain, a FLAIR on its own grid, a SWI with a background of -30, two
    labels and a mask of the brain."""
    root.mkdir(parents=True, exist_ok=True)
    first = native_affine(spacing)
    second = oblique("RAS", degrees=0.0, spacing=(4.0, 4.0, 6.0))
    second[:3, 3] = (-80, -110, -60)
    grids = {"T1w": (first, (46, 56, 46)), "FLAIR": (second, (40, 50, 26))}
    for channel, (affine, shape) in grids.items():
        mask = seen(fine.object.astype(np.float32), fine.grid, TRUE, affine, shape) >= 0.5
        x = seen(fine.x, fine.grid, TRUE, affine, shape)
        x = np.where(mask, 700 * x + 50 if channel == "T1w" else 900 - 700 * x, 0)
        save(x.astype(np.float32), affine, root / f"{name}_{channel}.nii.gz")
        if channel == "T1w":
            save(mask.astype(np.uint8), affine, root / f"{name}_brainmask.nii.gz")
            place = centre_of(mask, affine) + np.array([20, 10, 15])
            lesion = blob(shape, affine, place, 13.0)
            save(lesion, affine, root / f"{name}_mask.nii.gz")
            save(np.roll(lesion, 3, axis=0), affine, root / f"{name}_associated.nii.gz")
            save(np.where(mask, x - 300, -30), affine, root / f"{name}_swi.nii.gz")
    return {"place": place, "lesion": lesion, "affine": first}


def save(x, affine, path):
    nib.save(nib.Nifti1Image(x, affine), path)


@pytest.fixture(scope="module")
def raw(tmp_path_factory, fine):
    root = tmp_path_factory.mktemp("raw") / "data"
    truth = write_raw(root, fine)
    (root / "participants.tsv").write_text("participant_id\tage\tgroup\np1\t41.5\tcontrol\n")
    return root, truth


@pytest.fixture(scope="module")
def aligned():
    """What `align_case` gave for p1, once it was prepared."""
    return {}


@pytest.fixture(scope="module")
def prepared(raw, template, tmp_path_factory, aligned):
    out = tmp_path_factory.mktemp("aligned") / "out"
    real = preparing.align_case

    def kept(case, *rest, **more):
        return aligned.setdefault(case.id, real(case, *rest, **more))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "align_case", kept)
        done = preparing.prepare(
            [raw[0]],
            out,
            template=template,
            steps=Steps(mask=BrainMask.given, strip=True),
            channels=("T1w", "FLAIR", "swi"),
            report=lambda line: None,
        )
    assert done.summary.failed == {}
    assert done.flagged == {}
    return out


def test_the_output_is_a_data_set(prepared, template):
    (case,) = find_cases(prepared)
    assert (case.id, case.patient, list(case.images)) == ("p1", "p1", ["FLAIR", "T1w", "swi"])
    assert case.attributes == {"age": 41.5, "group": "control"}
    assert case.label is not None
    assert brain_mask_of(case).name == "p1_brainmask.nii.gz"
    assert not has_errors(check([prepared]))
    for path in (*case.images.values(), case.label):
        volume = read(path)
        assert volume.grid.shape == template.grid.shape
        np.testing.assert_allclose(volume.affine, template.grid.affine)
    brain = read(brain_mask_of(case), kind="label").array[0] > 0
    assert 2 * (brain & template.object).sum() / (brain.sum() + template.object.sum()) > 0.95
    for name, path in case.images.items():
        np.testing.assert_array_equal(read(path).array[0][~brain], -30 if name == "swi" else 0)


def test_a_channel_that_n4_cannot_take_stays_as_it_is(prepared, raw, template):
    record = json.loads((prepared / "p1" / "p1_transform.json").read_text())
    fields = {name: channel["bias_field"] for name, channel in record["channels"].items()}
    assert fields["swi"] is None
    assert None not in (fields["T1w"], fields["FLAIR"])
    said = [f["message"] for f in record["findings"] if f["code"] == "not_corrected"]
    assert len(said) == 1
    assert said[0].startswith("channel swi: N4 takes positive intensities")
    assert "no bias correction of swi" in (prepared / "qc_cases" / "p1.html").read_text()
    given, there = read(raw[0] / "p1_swi.nii.gz"), read(prepared / "p1" / "p1_swi.nii.gz")
    matrix = np.array(record["channels"]["T1w"]["native_to_template"])
    once = Alignment(given.native, template.grid, matrix).apply(given.array, fill=-30.0)[0]
    brain = read(prepared / "p1" / "p1_brainmask.nii.gz", kind="label").array[0] > 0
    np.testing.assert_allclose(there.array[0][brain], once[brain], atol=1e-3)


def test_labels_of_associated_changes_move_along(prepared, raw, template):
    (case,) = find_cases(prepared)
    assert case.associated == prepared / "p1" / "p1_associated.nii.gz"
    record = json.loads((prepared / "p1" / "p1_transform.json").read_text())
    matrix = np.array(record["channels"]["T1w"]["native_to_template"])
    given = read(raw[0] / "p1_associated.nii.gz", kind="label")
    once = Alignment(given.native, template.grid, matrix).apply_labels(given.array)
    there = read(case.associated, kind="label").array
    np.testing.assert_array_equal(there, once)
    assert there.any()


@pytest.mark.parametrize(("stripped", "n4"), [(True, False), (False, True)])
def test_volumes_are_prepared_as_those_of_a_run(stripped, n4, raw, tmp_path, program, monkeypatch):
    given = []

    def spy(*sources, steps, **more):
        given.append(steps)
        raise DataError("enough.")

    monkeypatch.setattr(preparing, "prepare", spy)
    record = {"template": "mni152", "stripped": stripped, "n4": n4, "source": "prepared.json"}
    write_record(tmp_path / "run" / "preparation.json", RunPreparation(**record))
    words = ("prepare", raw[0], "-o", tmp_path / "out", "--run", tmp_path / "run")
    assert program(*words)[0] == 1
    program(*words, "--no-strip" if stripped else "--strip", "--no-n4" if n4 else "--n4")
    assert [(s.strip, s.n4) for s in given] == [(stripped, n4), (not stripped, not n4)]
    program(*words[:-2])
    assert (given[-1].strip, given[-1].n4) == (False, True)


def test_a_run_in_the_space_of_another_template_is_refused(raw, tmp_path, program):
    for template in ("atlas.nii.gz", None):
        run = tmp_path / f"run-{template}"
        record = RunPreparation(template=template, stripped=True, n4=False, source="a")
        write_record(run / "preparation.json", record)
        code, _, said = program("prepare", raw[0], "-o", tmp_path / "out", "--run", run)
        assert code == 2
        assert f"{template or 'no template'}, expected MNI152" in said


def test_transform_and_label_are_those_of_the_phantom(prepared, raw, template):
    record = json.loads((prepared / "p1" / "p1_transform.json").read_text())
    for channel in ("T1w", "FLAIR"):  # no motion between them: one map takes both
        matrix = np.array(record["channels"][channel]["native_to_template"])
        assert error_mm(matrix, TRUE, template) < 1.5
    assert record["label_of"] == "T1w"
    truth = raw[1]
    label = read(prepared / "p1" / "p1_mask.nii.gz", kind="label")
    goal = (TRUE @ [*truth["place"], 1])[:3]
    assert np.linalg.norm(centre_of(label.array[0], label.affine) - goal) < 1.5
    # a ball of 13 mm loses a tenth to any one resampling at 4 mm
    native = read(raw[0] / "p1_mask.nii.gz", kind="label")
    once = Alignment(native.native, template.grid, TRUE).apply_labels(native.array)
    scale = record["channels"]["T1w"]["volume_scale"]
    ml = label.array.sum() * 0.064 / scale
    assert ml == pytest.approx(once.sum() * 0.064 / np.linalg.det(TRUE[:3, :3]), rel=0.04)
    assert ml == pytest.approx(truth["lesion"].sum() * 0.064, rel=0.12)


def test_anatomy_leads_maps_of_quantities():
    """Unless the user orders the channels; ADC, first by its name, ended 2 mm elsewhere."""
    images = {name: Path(f"p_{name}.nii.gz") for name in ("ADC", "DWI", "FLAIR", "T1w")}
    led = preparing._led(Case("p", "p", images))
    assert list(led.images) == ["T1w", "DWI", "FLAIR", "ADC"]  # as the template


def test_the_page_stands_alone(prepared):
    page = (prepared / "qc.html").read_text()
    assert 'href="qc_cases/p1.html"' in page
    assert "0 to look at, 0 failed" in page
    case = (prepared / "qc_cases" / "p1.html").read_text()
    assert case.count("data:image/png;base64,") == 1
    described = re.search(r'id="scene">(.*?)</script>', case)[1]
    images = [image["name"] for image in json.loads(described)["images"]]
    assert images == ["T1w", "FLAIR", "swi", "template"]
    assert 'href="../p1/p1_T1w.nii.gz"' in case
    for text in (page, case):
        assert not re.findall(r"""(?:src|href)=["'](?:https?:|//)""", text)


def contents(folder: Path) -> dict[str, bytes]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file() and "ledger" not in p.name)
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files if p.name != ".lock"}


def test_maps_go_home(prepared, raw, template, tmp_path, program):
    truth, maps = raw[1], tmp_path / "maps"
    maps.mkdir()
    label = read(prepared / "p1" / "p1_mask.nii.gz", kind="label").array[0]
    soft = ndimage.gaussian_filter(label.astype(np.float32), 0.7) - 0.25
    write(maps / "p1_desc-anomaly_map.nii.gz", soft, like=template.grid, kind="image")
    write(maps / "p1_desc-anomaly_mask.nii.gz", label, like=template.grid, kind="label")
    inputs = {"T1w": {"file": "p1_T1w.nii.gz", "sha256": "of the prepared file"}}
    digest = "of the prepared file"[:16]
    tokens = {"file": {digest: "train"}, "patient": {}, "name": {}}
    seen = keep(maps, Seen((Roster("runs/a", tokens),)))
    facts = {"score": 3.5, "findings": [], "inputs": inputs, "seen": seen.name}
    (maps / "p1_desc-anomaly_map.json").write_text(json.dumps(facts))
    words = ("restore", maps, "--prepared", prepared, "-o", tmp_path / "native")
    code, out, _ = program(*words)
    assert (code, "1 done" in out) == (0, True)
    found = nib.load(tmp_path / "native" / "p1_desc-anomaly_mask.nii.gz")
    np.testing.assert_allclose(found.affine, truth["affine"], atol=1e-4)
    home = np.asarray(found.dataobj)
    assert home.dtype == np.uint8
    distance = centre_of(home, found.affine) - truth["place"]
    assert np.linalg.norm(distance) < 1.0  # of 4 mm
    assert 2 * (home & truth["lesion"]).sum() / (home.sum() + truth["lesion"].sum()) > 0.9
    sidecar = json.loads((tmp_path / "native" / "p1_desc-anomaly_map.json").read_text())
    assert sidecar["score"] == 3.5
    assert sidecar["mask_volume_ml"] == pytest.approx(home.sum() * 0.064)
    (finding,) = sidecar["findings"]
    np.testing.assert_allclose(finding["centre_mm"], centre_of(home, found.affine), atol=0.01)
    values = read(tmp_path / "native" / "p1_desc-anomaly_map.nii.gz").array
    assert values.min() == pytest.approx(-0.25)
    assert sidecar["prepared_inputs"] == inputs
    # a model that has seen the prepared volume has seen this one
    known = {"p1": Truth("p1", "somebody", None, {})}
    (leak,) = leakage(tmp_path / "native", {"p1": sidecar}, known).leaks
    assert (leak.match.by, leak.match.of) == ("file", "runs/a")
    assert "already finished" in program(*words)[1]
    # the original volumes are the inputs now
    listed = program("findings", tmp_path / "native", "--images", raw[0], "--channels", "T1w")
    assert (listed[0], "1 finding" in listed[1]) == (0, True), listed
    flair = ("restore", maps, "--prepared", prepared, "-o", tmp_path / "f", "--channel", "FLAIR")
    assert program(*flair)[0] == 0
    assert nib.load(tmp_path / "f" / "p1_desc-anomaly_mask.nii.gz").shape == (40, 50, 26)


def test_maps_of_other_volumes_are_refused(prepared, tmp_path, program):
    maps = tmp_path / "maps"
    maps.mkdir()
    x = np.zeros((5, 5, 5), np.float32)
    write(maps / "p1_desc-anomaly_map.nii.gz", x, like=Grid((5, 5, 5), np.eye(4)), kind="image")
    write(maps / "q_desc-anomaly_map.nii.gz", x, like=Grid((5, 5, 5), np.eye(4)), kind="image")
    code, _, err = program("restore", maps, "--prepared", prepared, "-o", tmp_path / "out")
    assert code == 1
    assert "expected the grid of the prepared volumes" in err
    assert "q: was not prepared here" in err
    code, _, err = program("restore", maps, "--prepared", maps, "-o", tmp_path / "out")
    assert (code, "a folder that `prepare` wrote" in err) == (2, True)
    copy = shutil.copytree(prepared, tmp_path / "copy")
    for damaged in ("{", "[1]", '{"case": "p1", "first": "T1w", "channels": {"T1w": 3}}'):
        (copy / "p1" / "p1_transform.json").write_text(damaged)
        code, _, err = program("restore", maps, "--prepared", copy, "-o", tmp_path / "out2")
        assert code == 1
        assert "p1_transform.json: damaged" in err
        assert "prepare the case again" in err


def test_a_killed_run_goes_on_and_gives_the_same_bytes(raw, prepared, aligned, template, tmp_path):
    words = {"channels": ("T1w", "FLAIR", "swi"), "report": lambda line: None}
    root, out = tmp_path / "data", tmp_path / "out"
    root.mkdir()
    for path in raw[0].iterdir():
        (root / path.name).write_bytes(path.read_bytes())
        if path.name.endswith(".nii.gz"):
            (root / path.name.replace("p1", "p0")).write_bytes(path.read_bytes())
    calls = []

    def killed(case, *rest, **more):
        calls.append(case.id)
        if case.id == "p1":
            raise KeyboardInterrupt
        return aligned["p1"]  # p0 has the same bytes

    steps = Steps(mask=BrainMask.given, strip=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "align_case", killed)
        with pytest.raises(KeyboardInterrupt):
            preparing.prepare([root], out, template=template, steps=steps, **words)
    assert calls == ["p0", "p1"]
    kept = (out / "p0" / "p0_T1w.nii.gz").stat().st_mtime_ns
    done = preparing.prepare([root], out, template=template, steps=steps, **words).summary
    assert (done.skipped, done.done, done.failed) == (["p0"], ["p1"], {})
    assert (out / "p0" / "p0_T1w.nii.gz").stat().st_mtime_ns == kept
    again, once = contents(out / "p1"), contents(prepared / "p1")
    assert again == once
    # another label is another input, though no image has changed
    label = nib.load(root / "p0_mask.nii.gz")
    save(np.asarray(label.dataobj)[::-1], label.affine, root / "p0_mask.nii.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparing, "align_case", lambda *a, **k: pytest.fail("done again"))
        with pytest.raises(pytest.fail.Exception):
            preparing.prepare([root], out, template=template, steps=steps, **words)


def test_a_bad_case_does_not_stop_the_others(raw, tmp_path, program, monkeypatch, template):
    root = tmp_path / "data"
    root.mkdir()
    for path in raw[0].glob("p1_T1w*"):
        (root / path.name).write_bytes(path.read_bytes())
    whole = (raw[0] / "p1_T1w.nii.gz").read_bytes()
    (root / "p2_T1w.nii.gz").write_bytes(whole[: len(whole) // 2])
    ct = nib.load(raw[0] / "p1_T1w.nii.gz")
    save(np.asarray(ct.dataobj) - 1000, ct.affine, root / "p3_T1w.nii.gz")
    monkeypatch.setattr("volumediff.data.alignment_template.mni152", lambda: template)
    words = ("prepare", root, "-o", tmp_path / "out", "--mask", "none")
    code, out, err = program(*words)
    assert code == 1
    assert "1 done, 2 failed" in out
    assert "p2: " in err
    assert "leave N4 out" in err
    assert [c.id for c in find_cases(tmp_path / "out")] == ["p1"]
    assert "p2" in (tmp_path / "out" / "qc.html").read_text()
    code, _, err = program(*words, "--strip")
    assert (code, "overwrite them" in err) == (2, True)


USAGE = {
    "nothing": (("DATA/none", "-o", "OUT"), "nothing is there"),
    "inside": (("DATA", "-o", "DATA/out"), "apart from the data set"),
    "layout": (("DATA", "-o", "OUT", "--layout", "bid"), "choose from"),
    "spacing": (("DATA", "-o", "OUT", "--spacing-mm", "-1"), "above 0"),
    "template": (("DATA", "-o", "OUT", "--template", "mni"), "mni152 or a NIfTI file"),
    "mask": (("DATA", "-o", "OUT", "--template-mask", "m.nii"), "has its own"),
}


@pytest.mark.parametrize(("words", "message"), USAGE.values(), ids=USAGE)
def test_wrong_words_end_with_2(words, message, raw, tmp_path, program):
    words = [w.replace("DATA", str(raw[0])).replace("OUT", str(tmp_path / "o")) for w in words]
    code, _, err = program("prepare", *words)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_a_template_of_the_user(tmp_path, template):
    x = np.where(template.object, 100 * template.x + 1, 0).astype(np.float32)
    save(x, template.grid.affine, tmp_path / "t.nii.gz")
    found = template_from(tmp_path / "t.nii.gz")
    np.testing.assert_array_equal(found.object, x > 0)
    assert found.digest != template.digest
    save((x > 50).astype(np.uint8), template.grid.affine, tmp_path / "m.nii.gz")
    marked = template_from(tmp_path / "t.nii.gz", tmp_path / "m.nii.gz")
    np.testing.assert_array_equal(marked.object, x > 50)
    assert marked.digest != found.digest


def test_segmentations_go_home(prepared, raw, template, tmp_path, program):
    truth, out = raw[1], tmp_path / "labels"
    out.mkdir()
    label = read(prepared / "p1" / "p1_mask.nii.gz", kind="label").array[0] * np.uint8(3)
    p = ndimage.gaussian_filter((label > 0).astype(np.float32), 0.7)
    for name, array in (
        ("label-3_probseg", p),
        ("label-0_probseg", 1 - p),
        ("label-3_desc-variance_map", p * (1 - p)),
        ("label-3_desc-votes_map", p),
        ("desc-entropy_map", 4 * p * (1 - p)),
    ):
        write(out / f"p1_{name}.nii.gz", array, like=template.grid, kind="image")
    for name in ("dseg", "desc-sample1_dseg", "desc-sample12_dseg"):
        write(out / f"p1_{name}.nii.gz", label, like=template.grid, kind="label")
    inputs = {"T1w": {"file": "p1_T1w.nii.gz", "sha256": "of the prepared file"}}
    facts = {"volumes_ml": {"3": 1.0, "4": 2.0}, "volumes_ml_interval": {"3": [0.5, 1.5]}}
    (out / "p1_dseg.json").write_text(json.dumps({**facts, "inputs": inputs, "method": "m"}))
    code, said, _ = program("restore", out, "--prepared", prepared, "-o", tmp_path / "native")
    assert (code, "1 done" in said) == (0, True)
    native = {path.name: path for path in (tmp_path / "native").glob("p1_*")}
    assert set(native) == {path.name for path in out.iterdir()}
    home = nib.load(native["p1_dseg.nii.gz"])
    np.testing.assert_allclose(home.affine, truth["affine"], atol=1e-4)
    values = np.asarray(home.dataobj)
    assert set(np.unique(values)) == {0, 3}
    mine, theirs = values > 0, np.asarray(truth["lesion"]) > 0
    assert 2 * (mine & theirs).sum() / (mine.sum() + theirs.sum()) > 0.9
    np.testing.assert_array_equal(nib.load(native["p1_desc-sample12_dseg.nii.gz"]).dataobj, values)
    # what the template does not reach is background
    background, probability = (read(native[f"p1_label-{v}_probseg.nii.gz"]).array for v in (0, 3))
    np.testing.assert_allclose(background + probability, 1, atol=1e-3)
    sidecar = json.loads(native["p1_dseg.json"].read_text())
    assert sidecar["volumes_ml"] == {"3": pytest.approx(mine.sum() * 0.064), "4": 0}
    low, high = sidecar["volumes_ml_interval"]["3"]
    assert high == pytest.approx(3 * low)
    assert low == pytest.approx(0.5 / sidecar["volume_scale"])
    assert sidecar["inputs"]["T1w"]["sha256"] != "of the prepared file"
    assert sidecar["prepared_inputs"] == inputs
