"""What goes in comes out at its place: oracles are world coordinates, closed forms and copies."""

import gzip
from itertools import permutations, product
from pathlib import Path

import bad_volumes
import nibabel as nib
import numpy as np
import pytest
import torch

from volumediff.data.cases import Case
from volumediff.data.fingerprint import fingerprint
from volumediff.data.foreground import foreground, otsu
from volumediff.data.grid import Grid
from volumediff.data.intensity import Percentile, Window, ZScore
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.preprocessing_record import PreprocessingRecord
from volumediff.data.read_policy import ReadPolicy
from volumediff.data.resampling import (
    axis_weights,
    nearest_onto,
    onto,
    resample,
    resample_labels,
)
from volumediff.data.survey import find_cases
from volumediff.data.volume import Volume, read, write
from volumediff.errors import DataError

REAL = Path(__file__).parents[2] / "shared/data"
SEGMENTATION = REAL / "segmentation"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason="real volumes are not here")


def affine_of(order=(0, 1, 2), signs=(1, 1, 1), spacing=(1.0, 1.0, 1.0), tilt=0.0):
    affine = np.zeros((4, 4))
    for i, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        affine[axis, i] = sign * spacing[i]
    c, s = np.cos(tilt), np.sin(tilt)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    affine[:, 3] = 3, -5, 8, 1
    return affine


def blob(shape, affine, centre_mm, sigma_mm=3.0):
    """A Gaussian at a place of the world, and its centre of mass as a check on itself."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    return np.exp(-((world - centre_mm) ** 2).sum(-1) / 2 / sigma_mm**2).astype(np.float32)


def centre_of(array, affine):
    index = np.stack(np.meshgrid(*map(np.arange, array.shape), indexing="ij"), -1)
    mean = (index * array[..., None]).sum((0, 1, 2)) / array.sum()
    return affine[:3, :3] @ mean + affine[:3, 3]


def saved(folder, name, data, affine):
    path = folder / f"{name}.nii.gz"
    path.write_bytes(gzip.compress(bad_volumes.content(data, affine=affine, qform=1), 1))
    return path


def volume_of(data, affine=None, kind="image"):
    affine = np.eye(4) if affine is None else affine
    return Volume(data[None], affine, kind, Grid(data.shape, affine))


# ---- resampling -------------------------------------------------------------------------------


def test_axis_weights_by_hand():
    # two voxels from four: positions 0.5 and 2.5, triangle of half width 2
    found = axis_weights(4, 2, step=2.0, origin=0.5)
    raw = torch.tensor([[0.75, 0.75, 0.25, 0.0], [0.0, 0.25, 0.75, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(found, raw / 1.75)
    # four from two: linear in between, clamped to the edge outside
    found = axis_weights(2, 4, step=0.5, origin=-0.25)
    hand = [[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]]
    torch.testing.assert_close(found, torch.tensor(hand, dtype=torch.float64))
    # beyond the field of view: nothing
    assert axis_weights(3, 5, step=1.0, origin=-1.0).sum(1).tolist() == [0, 1, 1, 1, 0]


def test_linear_functions_are_reproduced_inside():
    x = torch.arange(10.0)[:, None, None] * torch.ones(1, 3, 4)
    for step in (0.4, 1.5, 2.0):
        origin = 3.3 if step < 2 else 2.3
        m = axis_weights(10, 3, step=step, origin=origin)
        same = (axis_weights(3, 3, step=1.0, origin=0.0), axis_weights(4, 4, step=1.0, origin=0.0))
        got = resample(x[None], (m, *same), fill=0.0)[0, :, 0, 0]
        expected = torch.arange(3.0) * step + origin
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_downsampling_does_not_alias():
    # one bright plane in four, sampled at every fourth voxel: without a filter all or nothing
    x = torch.zeros(1, 32, 1, 1)
    x[:, ::4] = 1
    one = axis_weights(1, 1, step=1.0, origin=0.0)
    means = [
        resample(x, (axis_weights(32, 8, step=4.0, origin=o), one, one), fill=0.0)[0, 1:-1].mean()
        for o in (0.0, 1.0, 2.0)
    ]
    assert max(means) - min(means) < 1e-6
    assert float(means[0]) == pytest.approx(0.25, abs=1e-6)


def test_labels_win_by_membership():
    y = torch.tensor([0, 0, 0, 3, 3, 3, 7, 7], dtype=torch.uint8)[None, :, None, None]
    one = axis_weights(1, 1, step=1.0, origin=0.0)
    # positions 2.6, 5.4, 5.6: nearest labels there are 3 (0.6 > 0.4), 3 and 7
    m = torch.cat([axis_weights(8, 1, step=1.0, origin=o) for o in (2.6, 5.4, 5.6)])
    assert resample_labels(y, (m, one, one)).ravel().tolist() == [3, 3, 7]
    # never a value in between
    half = axis_weights(8, 15, step=0.5, origin=0.0)
    assert set(resample_labels(y, (half, one, one)).ravel().tolist()) == {0, 3, 7}


def test_onto_another_rotated_grid_keeps_places():
    source = Grid((24, 20, 16), affine_of(tilt=0.4, spacing=(1.0, 1.5, 2.0)))
    target = Grid((30, 28, 26), affine_of(spacing=(1.0, 1.0, 1.0)))
    place = source.affine[:3, :3] @ [11, 9, 8] + source.affine[:3, 3]
    x = torch.from_numpy(blob(source.shape, source.affine, place))[None]
    target.affine[:3, 3] = place - 13
    moved, covered = onto(x, source, target, fill=0.0)
    np.testing.assert_allclose(centre_of(moved[0].numpy(), target.affine), place, atol=0.05)
    assert not covered.all()
    assert covered[0, 13, 13, 13]
    # the same grid: every voxel is its own source
    same, _ = onto(x, source, source, fill=0.0)
    torch.testing.assert_close(same, x, atol=1e-5, rtol=0)


# ---- intensities ------------------------------------------------------------------------------


def test_limits_by_hand():
    x = np.arange(1001, dtype=np.float32).reshape(7, 11, 13)
    mask = np.ones(x.shape, bool)
    assert Percentile(low=1.0, high=99.0).limits(x, mask) == pytest.approx((10, 990))
    low, high = ZScore(deviations=2.0).limits(x, mask)
    assert (low + high) / 2 == pytest.approx(500)
    assert high - low == pytest.approx(4 * np.sqrt((1001**2 - 1) / 12))
    assert Window(center=-600.0, width=1500.0).limits(x, mask) == (-1350, 150)
    # limits do not see the background
    mask[x < 501] = False
    assert Percentile(low=0.0, high=100.0).limits(x, mask) == (501, 1000)


@pytest.mark.parametrize(
    ("rule", "options"),
    [
        (Percentile, {"low": 99.0, "high": 1.0}),
        (ZScore, {"deviations": 0.0}),
        (Window, {"width": 0.0}),
    ],
)
def test_impossible_rules_are_refused(rule, options):
    with pytest.raises(ValueError, match=rule.__name__):
        rule(**options)


def test_foreground_rules():
    rng = np.random.default_rng(0)
    inside = np.zeros((24, 24, 24), bool)
    inside[5:19, 5:19, 5:19] = True
    dark = np.zeros_like(inside)
    dark[10:14, 10:14, 5:] = True  # a dark canal, open to one side
    stripped = np.where(inside, 100.0, 0).astype(np.float32)
    np.testing.assert_array_equal(foreground(stripped, "auto"), inside)
    noisy = np.abs(rng.normal(0, 5, inside.shape)) + 0.1 + np.where(inside & ~dark, 100, 0)
    np.testing.assert_array_equal(foreground(noisy.astype(np.float32), "auto"), inside)
    ct = np.where(inside & ~dark, 40, -1000).astype(np.float32)
    ct[0, :, :] = 300  # the table is not the body
    np.testing.assert_array_equal(foreground(ct, "body"), inside)
    # a field of view that cuts through the dark part
    cut = inside[12:]
    np.testing.assert_array_equal(foreground(ct[12:], "body"), cut)


def test_otsu_splits_two_classes():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(10, 2, 600), rng.normal(60, 5, 400)]).astype(np.float32)
    assert 15 < otsu(x.reshape(10, 10, 10)) < 50


# ---- there and back ---------------------------------------------------------------------------


def test_equal_spacing_is_an_exact_copy(tmp_path):
    path = saved(tmp_path, "a_T1w", bad_volumes.voxels(), bad_volumes.AFFINE)
    plan = Preprocessing(intensity=Window(center=500.0, width=1000.0, foreground="nonzero"))
    prepared = plan.prepare(Case("a", "a", {"T1w": path}))
    expected = torch.from_numpy(bad_volumes.voxels()) / 500 - 1
    torch.testing.assert_close(prepared.x[0], expected, atol=1e-6, rtol=0)
    # a crop and a pad are copies, too: to the bit, with background outside
    plan = Preprocessing(shape=(16, 30, 16), intensity=plan.intensity)
    cut = plan.prepare(Case("a", "a", {"T1w": path}))
    torch.testing.assert_close(cut.x[0, :, 3:27], prepared.x[0, 2:18], atol=0, rtol=0)
    assert (cut.x[0, :, :3] == -1).all()
    assert not cut.foreground[0, :, :3].any()
    back = plan.to_canonical(cut.x, cut.record, fill=-1.0)
    np.testing.assert_array_equal(back[0, 2:18], prepared.x[0, 2:18].numpy())
    assert (back[0, :2] == -1).all()
    assert "cropped" in [f.code for f in cut.record.findings]


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.6, 1.1, 4.0)])
@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_blob_stays_where_it_is(order, spacing, tmp_path):
    for signs in product((1, -1), repeat=3):
        affine = affine_of(order, signs, spacing, tilt=0.2)
        shape = tuple(int(36 / s) for s in spacing)
        place = affine[:3, :3] @ ((np.array(shape) - 1) * [0.45, 0.55, 0.4]) + affine[:3, 3]
        path = saved(tmp_path, "a", blob(shape, affine, place), affine)
        plan = Preprocessing(
            spacing_mm=(1.5, 1.5, 1.5),
            shape=(24, 24, 24),
            centre="volume",
            intensity=Window(center=0.5, width=1.0, foreground="nonzero"),
        )
        prepared = plan.prepare(Case("a", "a", {"image": path}))
        share = (prepared.x[0].numpy() + 1) / 2
        np.testing.assert_allclose(centre_of(share, prepared.record.grid.affine), place, atol=0.1)
        assert prepared.spacing_mm == pytest.approx((1.5, 1.5, 1.5))
        write(
            tmp_path / "b.nii.gz",
            plan.to_canonical(share[None], prepared.record),
            like=prepared.record.native,
            kind="image",
        )
        before, after = nib.load(path), nib.load(tmp_path / "b.nii.gz")
        assert after.shape == before.shape
        assert np.abs(after.affine - before.affine).max() <= 1e-5
        np.testing.assert_allclose(centre_of(after.get_fdata(), affine), place, atol=0.1)


@pytest.mark.parametrize("shape", [(20, 24, 1), (20, 24, 29), (3, 4, 1), (1, 30, 40)])
def test_thin_stacks_are_legal(shape, tmp_path):
    data = bad_volumes.voxels(shape)
    path = saved(tmp_path, "a", data, np.diag([1.0, 1.0, 5.0, 1.0]))
    for plan in (
        Preprocessing(),
        Preprocessing(spacing_mm=(2.0, 2.0, 5.0)),
        Preprocessing(spacing_mm=(1.0, 1.0, 1.0), shape=(16, 16, 16)),
    ):
        prepared = plan.prepare(Case("a", "a", {"image": path}))
        back = plan.to_canonical(prepared.x, prepared.record, fill=-1.0)
        assert back.shape == (1, *shape)
        assert np.isfinite(back).all()
    prepared = Preprocessing().prepare(Case("a", "a", {"image": path}))
    np.testing.assert_array_equal(
        Preprocessing().to_canonical(prepared.x, prepared.record), prepared.x.numpy()
    )


def test_labels_go_along_and_back(tmp_path):
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[10:26, 12:28, 14:30], mask[18:22, 18:22, 18:22] = 1, 3
    image = saved(tmp_path, "a_T1w", bad_volumes.voxels(mask.shape), np.diag([1, 1, 1, 1.0]))
    label = saved(tmp_path, "a_mask", mask[::-1], np.array(affine_of(signs=(-1, 1, 1))))
    with pytest.raises(DataError, match=r"a_mask.*expected the grid of"):
        Preprocessing().prepare(Case("a", "a", {"T1w": image}, label))
    frames = saved(tmp_path, "b_mask", np.stack([mask] * 2, -1), np.diag([1, 1, 1, 1.0]))
    channels = Preprocessing(policy=ReadPolicy(frames="channels"))
    with pytest.raises(DataError, match=r"b_mask.*one label volume, got 2 frames"):
        channels.prepare(Case("a", "a", {"T1w": image}, frames))
    flipped = np.diag([-1.0, 1, 1, 1])
    flipped[0, 3] = 39
    label = saved(tmp_path, "a_mask", mask[::-1], flipped)
    plan = Preprocessing(spacing_mm=(1.6, 1.6, 1.6), shape=(24, 24, 24))
    prepared = plan.prepare(Case("a", "a", {"T1w": image}, label))
    assert set(prepared.label.unique().tolist()) == {0, 1, 3}
    volume_mm3 = [float((prepared.label == v).sum()) * 1.6**3 for v in (1, 3)]
    assert volume_mm3[0] == pytest.approx(16**3 - 4**3, rel=0.25)
    assert abs(volume_mm3[1] ** (1 / 3) - 4) < 1.6  # the small cube to less than a voxel per side
    back = plan.to_canonical(prepared.label, prepared.record, order=0)
    assert back.dtype == np.uint8
    for value in (1, 3):
        a, b = back[0] == value, mask == value
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.85


@pytest.mark.parametrize("spacing", [0.2, 0.25, 0.3])
def test_thin_labels_survive_better_than_as_closest_or_as_wide_means(spacing):
    folder = SEGMENTATION / "mouse_hippocampus"
    if not folder.is_dir():
        pytest.skip("real labels are not here")
    plan = Preprocessing(spacing_mm=(spacing,) * 3, centre="volume")
    found, kept = {"linear": [], "nearest": [], "wide": []}, []
    for case in find_cases(folder)[:4]:
        prepared, truth = plan.prepare(case), read(case.label, kind="label")
        record, y = prepared.record, torch.from_numpy(truth.array)
        back = plan.to_canonical(prepared.label, record, order=0)
        found["linear"].append(dice(back == 2, truth.array == 2))
        near = nearest_onto(y, record.canonical, record.grid)
        home = nearest_onto(near, record.grid, record.canonical).numpy()
        found["nearest"].append(dice(home == 2, truth.array == 2))
        wide = [
            axis_weights(n, m, step=s, origin=o)
            for n, m, s, o in zip(
                y.shape[1:], record.shape, record.step, record.origin, strict=True
            )
        ]
        home = plan.to_canonical(resample_labels(y, tuple(wide)), record, order=0)
        found["wide"].append(dice(home == 2, truth.array == 2))
        kept.append(float((prepared.label == 2).sum()) / float((y == 2).sum()))
    linear, nearest, wide = (np.mean(found[name]) for name in ("linear", "nearest", "wide"))
    assert np.mean(kept) * (spacing / 0.15) ** 3 == pytest.approx(1, abs=0.15)
    assert linear > nearest + 0.02
    assert linear > wide + 0.005


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_channels_on_other_grids_go_to_the_first(tmp_path):
    first, other = affine_of(spacing=(2.0, 2.0, 2.0)), affine_of(spacing=(1.0, 1.0, 4.0), tilt=0.1)
    place = first[:3, :3] @ [8, 9, 7] + first[:3, 3]
    paths = {
        "DWI": saved(tmp_path, "a_DWI", blob((18, 18, 14), first, place), first),
        "FLAIR": saved(tmp_path, "a_FLAIR", blob((36, 36, 7), other, place), other),
    }
    plan = Preprocessing(intensity=Window(center=0.5, width=1.0, foreground="nonzero"))
    prepared = plan.prepare(Case("a", "a", paths))
    assert "resampled" in [f.code for f in prepared.record.findings]
    shares = (prepared.x.numpy() + 1) / 2
    for share in shares:
        np.testing.assert_allclose(centre_of(share, prepared.record.grid.affine), place, atol=0.4)
    far = affine_of(spacing=(1.0, 1.0, 4.0))
    far[0, 3] = 500
    paths["FLAIR"] = saved(tmp_path, "a_FLAIR", bad_volumes.voxels(), far)
    with pytest.raises(DataError, match="does not overlap"):
        plan.prepare(Case("a", "a", paths))


def test_channels_in_other_axis_orders_are_aligned(tmp_path):
    data = bad_volumes.voxels()
    paths = {
        "a": saved(tmp_path, "a", data, bad_volumes.AFFINE),
        "b": saved(tmp_path, "b", data[::-1], bad_volumes.MIRRORED),
    }
    prepared = Preprocessing().prepare(Case("a", "a", paths))
    torch.testing.assert_close(prepared.x[0], prepared.x[1], atol=0, rtol=0)
    assert "orientation_differs" in [f.code for f in prepared.record.findings]


def test_crop_follows_the_foreground_but_wastes_nothing():
    data = np.zeros((40, 40, 40), np.float32)
    data[2:12, 20:30, 28:40] = np.arange(1, 11)[:, None, None]
    prepared = Preprocessing(shape=(16, 16, 48)).prepare_volumes([volume_of(data)])
    # centre 6.5 would start at -1: moved to 0; the second starts at 17; the third fits whole
    assert prepared.record.origin == (0, 17, 0)
    assert int(prepared.foreground.sum()) == 10 * 10 * 12


def test_intensities_come_back_in_the_unit_of_the_file():
    data = bad_volumes.voxels()
    plan = Preprocessing(intensity=Percentile(low=0.0, high=100.0, foreground="nonzero"))
    prepared = plan.prepare_volumes([volume_of(data), volume_of(data * 3 + 5)])
    back = plan.to_intensity(prepared.x.numpy(), prepared.record)
    np.testing.assert_allclose(back, np.stack([data, data * 3 + 5]), atol=1e-2)


def test_record_survives_json(tmp_path):
    import json

    path = saved(tmp_path, "a", bad_volumes.voxels(), affine_of((2, 0, 1), (-1, 1, 1)))
    plan = Preprocessing(spacing_mm=(1.3, 1.3, 1.3), shape=(12, 12, 12))
    prepared = plan.prepare(Case("a", "a", {"image": path}))
    again = PreprocessingRecord.from_json(json.loads(json.dumps(prepared.record.to_json())))
    for record in (prepared.record, again):
        out = plan.to_canonical(prepared.x, record, fill=-1.0)
        write(tmp_path / f"{id(record)}.nii.gz", out, like=record.native, kind="image")
    one, two = (p.read_bytes() for p in tmp_path.glob("[0-9]*.nii.gz"))
    assert one == two
    assert again.findings == prepared.record.findings


def test_targets_beyond_the_budget_are_refused(tmp_path):
    path = saved(tmp_path, "a", bad_volumes.voxels(), np.diag([100.0, 100.0, 100.0, 1.0]))
    with pytest.raises(DataError, match="coarser spacing_mm"):
        Preprocessing(spacing_mm=(0.5, 0.5, 0.5)).prepare(Case("a", "a", {"image": path}))
    with pytest.raises(ValueError, match="spacing_mm"):
        Preprocessing(spacing_mm=(1.0, 0.0, 1.0))


def test_fingerprint_sees_files_and_options(tmp_path):
    path = saved(tmp_path, "a", bad_volumes.voxels(), bad_volumes.AFFINE)
    case, plan = Case("a", "a", {"image": path}), Preprocessing()
    first = fingerprint(case, plan)
    assert fingerprint(Case("b", "c", {"image": path}), Preprocessing()) == first
    others = [
        fingerprint(case, Preprocessing(intensity=Percentile(low=0.4))),
        fingerprint(case, Preprocessing(policy=ReadPolicy(nonfinite="refuse"))),
        fingerprint(Case("a", "a", {"T1w": path}), plan),
        fingerprint(Case("a", "a", {"image": path}, path), plan),
    ]
    saved(tmp_path, "a", bad_volumes.voxels(seed=1), bad_volumes.AFFINE)
    assert len({first, *others, fingerprint(case, plan)}) == 6


@needs_real
def test_real_stroke_with_two_grids(tmp_path):
    case = next(c for c in find_cases(REAL / "pathology") if c.id == "stroke_isles")
    plan = Preprocessing(spacing_mm=(4.0, 4.0, 4.0))
    prepared = plan.prepare(case)
    assert [f.code for f in prepared.record.findings] == ["resampled"]
    assert prepared.x.shape == (3, 56, 56, 36)
    # FLAIR is at its place: brains of both acquisitions overlap
    a, b = (prepared.x[i] > -1 for i in (1, 2))
    assert float(2 * (a & b).sum() / (a.sum() + b.sum())) > 0.85


@needs_real
def test_real_lesion_volume_survives(tmp_path):
    case = next(c for c in find_cases(REAL / "pathology") if c.id == "ms_p07")
    truth = read(case.label, kind="label").array
    plan = Preprocessing(shape=(112, 144, 112))
    prepared = plan.prepare(case)
    assert int(prepared.label.sum()) == int(truth.sum())
    back = plan.to_canonical(prepared.label, prepared.record, order=0)
    np.testing.assert_array_equal(back, truth)


@needs_real
def test_real_lung_is_foreground_where_the_field_of_view_cuts_it():
    x = read(REAL / "ct/lung_ct.nii.gz").array[0]
    inside = foreground(x, "body")
    assert inside[50, 60, 64]  # air in the lung
    assert not inside[114, 156, 64]  # air beside the patient
    assert 0.85 < inside.mean() < 0.95
