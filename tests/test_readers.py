"""Several readers of one examination, from files to training samples."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from data_sets import lidc, nifti, text, touch

from volumediff.data.augmentation import Augmentation
from volumediff.data.cases import Contour
from volumediff.data.check import check, has_errors
from volumediff.data.contours import filled_contours, inside
from volumediff.data.fingerprint import fingerprint
from volumediff.data.intensity import Window
from volumediff.data.preprocessing import Preprocessing
from volumediff.data.readers import agreement, majority
from volumediff.data.survey import find_cases, survey_cases
from volumediff.data.volume import Volume, read
from volumediff.errors import DataError
from volumediff.evaluation.truths import find_truths
from volumediff.recipes._base import Subject, Target
from volumediff.recipes.healthy import Healthy
from volumediff.samples.dataset import Crop, Keyed
from volumediff.samples.statistics import Statistics
from volumediff.samples.volumes import TrainingVolume
from volumediff.storage.cache import Cache

REAL = Path(__file__).parents[2] / "shared/data/segmentation"
real = pytest.mark.skipif(not REAL.is_dir(), reason="real readers are not here")


def four(values):
    """Readers of a volume of one voxel per column."""
    return np.array(values, np.uint8)[:, None, None, :]


def test_majority_by_hand():
    # columns: all 1; two of four; one of four; 2 against 1 against two zeros; a tie of labels
    readers = four([[1, 1, 1, 2, 2], [1, 1, 0, 1, 2], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1]])
    assert majority(readers).tolist() == [[[[1, 1, 0, 0, 1]]]]
    # of three labels with one reader each and one zero, the smallest label
    assert majority(four([[3], [1], [2], [0]])).tolist() == [[[[1]]]]
    assert majority(four([[3]])).tolist() == [[[[3]]]]
    with pytest.raises(ValueError, match="at least one reader"):
        majority(np.zeros((0, 1, 1, 1), np.uint8))


def test_majority_of_one_label_is_half_of_the_readers():
    readers = np.random.default_rng(0).integers(0, 2, (4, 6, 5, 4)).astype(np.uint8)
    assert np.array_equal(majority(readers)[0], readers.mean(0) >= 0.5)


def test_agreement_by_hand():
    # IoU 1/2, 0 and 0
    assert agreement(four([[1, 1, 0], [1, 0, 0], [0, 0, 1]])) == pytest.approx(1 / 6)
    assert agreement(four([[0, 0], [0, 0]])) == 1.0


@pytest.fixture
def parallel(tmp_path):
    """Two patients: images in one folder, readers in another."""
    for patient, shift in (("LIDC-0001", 0), ("LIDC-0002", 2)):
        x = np.zeros((12, 10, 8), np.float32)
        x[2:9, 2:8, 2:6] = np.random.default_rng(shift).uniform(1, 2, (7, 6, 4))
        nifti(tmp_path / f"images/{patient}_CT.nii.gz", x)
        votes = np.zeros(x.shape, np.uint8)
        for reader in range(1, 5):
            mask = np.zeros(x.shape, np.uint8)
            mask[3 : 4 + reader + shift % 3, 3:6, 3:5] = 1
            votes += mask
            nifti(tmp_path / f"labels/{patient}_reader-{reader}_mask.nii.gz", mask)
        nifti(tmp_path / f"labels/{patient}_votes.nii.gz", votes)
    return tmp_path


def test_images_and_labels_in_two_folders(parallel):
    cases = find_cases(parallel)
    assert [c.id for c in cases] == [c.patient for c in cases] == ["LIDC-0001", "LIDC-0002"]
    for case in cases:
        assert list(case.images) == ["CT"]
        assert case.label is None
        assert case.labelled
        assert list(case.labels) == ["1", "2", "3", "4"]
        assert all(p.name.startswith(f"{case.id}_reader") for p in case.labels.values())
    rows = check([parallel])
    assert not has_errors(rows)
    assert any(r.code == "readers" and r.message.startswith("4 readers") for r in rows)
    assert not any("votes" in r.file for r in rows)


def test_labels_without_a_word_lie_in_the_folder_of_labels(tmp_path):
    touch(tmp_path, "images/a.nii.gz", "images/b_T1w.nii.gz", "images/b_FLAIR.nii.gz")
    touch(tmp_path, "labels/a.nii.gz", "labels/b_rater2.nii.gz", "labels/b_rater10.nii.gz")
    a, b = find_cases(tmp_path)
    assert a.label == tmp_path / "labels/a.nii.gz"
    assert not a.labels
    assert list(b.images) == ["FLAIR", "T1w"]
    assert list(b.labels) == ["2", "10"]


def test_two_patients_are_never_one_case(tmp_path):
    touch(tmp_path, "all/p01_reader-1_mask.nii.gz", "all/p02_reader-2_mask.nii.gz")
    touch(tmp_path, "all/T1w.nii.gz")
    with pytest.raises(DataError, match=r"p02_reader-2_mask.nii.gz and p01_.* of two cases"):
        find_cases(tmp_path)


def test_images_of_two_patients_are_never_one_case(tmp_path):
    touch(tmp_path, "sick/scan007.nii.gz", "sick/scan012.nii.gz", "well/scan003_T1w.nii.gz")
    touch(tmp_path, "well/scan104_T1w.nii.gz")
    cases, problems = survey_cases(tmp_path)
    assert not cases
    assert [p.id for p in problems] == ["sick", "well"]
    assert all("images of two cases in one folder" in p.message for p in problems)


@pytest.mark.parametrize(
    "names",
    [
        ("pre_T1w", "post_T1w"),
        ("echo1", "echo2"),
        ("run-01_T1w", "run-02_T1w"),
        ("003_T1w", "005_FLAIR"),
    ],
)
def test_channels_of_one_patient_stay_in_one_case(names, tmp_path):
    touch(tmp_path, *(f"p01/{name}.nii.gz" for name in names))
    (case,) = find_cases(tmp_path)
    assert sorted(case.images) == sorted(names)


def test_numbered_channels_of_every_patient_are_channels(tmp_path):
    touch(tmp_path, *(f"p{i}/DTI-{j:02d}.nii.gz" for i in range(2) for j in range(3)))
    assert [len(c.images) for c in find_cases(tmp_path)] == [3, 3]


def test_readers_in_a_folder_per_case_with_their_consensus(tmp_path):
    touch(tmp_path, "p1/p1_T1w.nii.gz", "p1/p1_reader-A_mask.nii.gz", "p1/p1_reader-B_mask.nii.gz")
    touch(tmp_path, "p1/p1_consensus_mask.nii.gz", "p2/p2_T1w.nii.gz", "p2/rater1_seg.nii.gz")
    one, two = find_cases(tmp_path)
    assert one.label.name == "p1_consensus_mask.nii.gz"
    assert list(one.labels) == ["A", "B"]
    assert two.label is None
    assert list(two.labels) == ["1"]


def test_a_reader_counts_once(tmp_path):
    touch(tmp_path, "a_T1w.nii.gz", "a_reader-1_mask.nii.gz", "a_reader-1_seg.nii.gz")
    with pytest.raises(DataError, match=r"are both its label of reader 1; keep one"):
        find_cases(tmp_path)


def test_bids_readers(tmp_path):
    at = "sub-01/anat/sub-01"
    touch(tmp_path, f"{at}_T1w.nii.gz", f"{at}_votes.nii.gz", "sub-02/anat/sub-02_T1w.nii.gz")
    truth = "derivatives/masks/sub-01/anat/sub-01"
    touch(tmp_path, *(f"{truth}_label-lesion_reader-{n}_mask.nii.gz" for n in (10, 2)))
    touch(tmp_path, "derivatives/masks/sub-02/anat/sub-02_reader-2_mask.nii.gz")
    one, two = find_cases(tmp_path)
    assert list(one.images) == ["T1w"]
    assert one.label is None
    assert list(one.labels) == ["2", "10"]
    assert list(two.labels) == ["2"]
    assert "sub-02" in two.labels["2"].name
    touch(tmp_path, f"{truth}_label-lesion_reader-2_dseg.nii.gz")
    with pytest.raises(DataError, match="case sub-01: 2 labels fit"):
        find_cases(tmp_path)


def test_lists_and_tables_of_readers(tmp_path):
    touch(tmp_path, "a.nii.gz", "m1.nii.gz", "m2.nii.gz", "c.nii.gz")
    entries = [
        {"image": "a.nii.gz", "label": ["m1.nii.gz", "m2.nii.gz"], "id": "p1"},
        {"image": "a.nii.gz", "label": {"kim": "m2.nii.gz"}, "id": "p2"},
        {"image": "a.nii.gz", "label": ["c.nii.gz"], "id": "p3"},
    ]
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps({"training": entries, "labels": {"0": "back", "1": "nodule"}}))
    one, two, three = find_cases(listed)
    assert {n: p.name for n, p in one.labels.items()} == {"1": "m1.nii.gz", "2": "m2.nii.gz"}
    assert list(two.labels) == ["kim"]
    assert one.names == {1: "nodule"}
    assert three.label.name == "c.nii.gz"
    assert not three.labels
    text(
        tmp_path / "cases.csv",
        "id,image,label,label:kim,label:lee,age",
        "p1,a.nii.gz,c.nii.gz,m1.nii.gz,m2.nii.gz,60",
        "p2,a.nii.gz,,m1.nii.gz,,61",
    )
    one, two = find_cases(tmp_path)
    assert one.label.name == "c.nii.gz"
    assert list(one.labels) == ["kim", "lee"]
    assert two.label is None
    assert list(two.labels) == ["kim"]
    assert two.attributes == {"age": 61.0}


def test_prepared_readers_and_their_majority(parallel):
    case = find_cases(parallel)[0]
    prepared = Preprocessing(spacing_mm=(0.8, 1.0, 1.0)).prepare(case)
    readers = prepared.readers.numpy()
    assert readers.shape == (4, *prepared.x.shape[1:])
    assert np.array_equal(prepared.label.numpy(), majority(readers))
    sizes = readers.sum((1, 2, 3))
    assert (np.diff(sizes.astype(int)) > 0).all()
    same = Preprocessing().prepare(case)
    assert same.readers.sum().item() == 6 * (2 + 3 + 4 + 5)
    assert same.label.sum().item() == 6 * 4  # readers 3 and 4 have a fourth slab: half of them


def test_fingerprint_sees_every_reader(parallel):
    plan, case = Preprocessing(), find_cases(parallel)[0]
    before = fingerprint(case, plan)
    path = case.labels["3"]
    nifti(path, np.zeros((12, 10, 8), np.uint8))
    assert fingerprint(case, plan) != before


def test_readers_on_another_grid_are_refused(parallel):
    nifti(parallel / "labels/LIDC-0001_reader-2_mask.nii.gz", np.ones((4, 4, 4), np.uint8))
    case = find_cases(parallel)[0]
    with pytest.raises(DataError, match="reader-2"):
        Preprocessing().prepare(case)


def test_truth_of_an_evaluation_is_the_majority(parallel):
    case = find_cases(parallel)[0]
    truth = find_truths(parallel)[case.id]
    like = read(case.images["CT"])
    assert int(truth.marks(like).lesion.sum()) == 6 * 4


def test_readers_move_with_the_label(parallel):
    prepared = Preprocessing().prepare(find_cases(parallel)[0])
    augment = Augmentation(
        flip=(0, 1), affine_degrees=20.0, affine_translation_mm=2.0, elastic_mm=1.0
    )
    moved = augment(
        prepared.x,
        3,
        spacing_mm=prepared.spacing_mm,
        label=prepared.label,
        readers=prepared.readers,
    )
    assert not torch.equal(moved.readers, prepared.readers)
    assert np.array_equal(moved.label.numpy(), majority(moved.readers.numpy()))


def test_contours_hold_what_matplotlib_finds_inside():
    from matplotlib.path import Path as Polygon

    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(40), np.arange(40), indexing="ij"), -1).reshape(-1, 2)
    for _ in range(20):
        angles, radius = np.sort(rng.uniform(0, 2 * np.pi, 24)), rng.uniform(6, 14, 24)
        ring = np.rint(20 + radius * np.stack([np.cos(angles), np.sin(angles)])).astype(int).T
        (x0, y0), mask = inside(Contour(0, tuple(map(tuple, ring.tolist()))))
        found = np.zeros((40, 40), bool)
        found[x0 : x0 + mask.shape[0], y0 : y0 + mask.shape[1]] = mask
        a, b = ring.astype(float), np.roll(ring, -1, axis=0).astype(float)
        length = ((b - a) ** 2).sum(1).clip(1e-9)
        along = (((grid[:, None] - a) * (b - a)).sum(-1) / length).clip(0, 1)
        gap = np.linalg.norm(grid[:, None] - a - along[..., None] * (b - a), axis=-1).min(1)
        wanted = Polygon(ring).contains_points(grid)
        assert np.array_equal(found.ravel()[gap > 0.75], wanted[gap > 0.75])
        assert not found.ravel()[gap < 1e-9].any()


def test_contours_by_hand():
    square = ((2, 1), (6, 1), (6, 5), (2, 5))
    corner, mask = inside(Contour(0, square))
    assert corner == (2, 1)
    expected = np.zeros((5, 5), bool)
    expected[1:4, 1:4] = True
    assert np.array_equal(mask, expected)
    assert inside(Contour(0, ((3, 3), (4, 3))))[1].tolist() == [[True], [True]]
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])  # as CT is stored
    like = Volume.from_array(np.zeros((10, 8, 4), np.float32), affine)
    hole = Contour(2, ((3, 2), (5, 2), (5, 4), (3, 4)), excludes=True)
    label = filled_contours([hole, Contour(2, square), Contour(1, square)], like)
    assert label.array.sum(axis=(0, 1, 2)).tolist() == [0, 9, 8, 0]
    # columns and rows are reversed on the way to R, A, S
    assert label.array[0, 10 - 1 - 3, 8 - 1 - 2, 1] == 1
    assert label.array[0, 10 - 1 - 4, 8 - 1 - 3, 2] == 0
    with pytest.raises(DataError, match=r"contour at \(2, 1, 7\) .* does not lie in a volume"):
        filled_contours([Contour(7, square)], like)


def test_readers_of_lidc_are_filled_contours(tmp_path):
    lidc(tmp_path)
    (case,) = find_cases(tmp_path)
    assert {reader: len(drawn) for reader, drawn in case.contours.items()} == {
        "1": 2,
        "2": 2,
        "3": 1,
        "4": 1,
    }
    prepared = Preprocessing(intensity=Window(0.0, 200.0)).prepare(case)
    # 3 x 3 and 4 x 3 pixels on two slices, 3 x 2 on one; the contour of the fourth has no inside
    assert prepared.readers.sum((1, 2, 3)).tolist() == [18, 24, 6, 4]
    assert np.array_equal(prepared.label.numpy(), majority(prepared.readers.numpy()))
    like = read(case.images["image"])
    maps = find_truths(tmp_path)[case.id].label_maps(like)
    assert np.array_equal(maps.readers[:, None].sum((1, 2, 3, 4)), [18, 24, 6, 4])
    assert int(maps.consensus.sum()) == 20
    # two of four: the 3 x 3 of both slices, and what the second and the third share beyond
    assert int(prepared.label.sum()) == 20


class Opinions(Healthy):
    """Shows the readers as they reach a recipe."""

    def target(self, subject: Subject, *, atlas, key):
        return Target(subject.readers.float(), (subject.x, subject.label.float()))


def test_crops_carry_the_readers(parallel, tmp_path):
    cache, plan, volumes = Cache(tmp_path / "cache", print), Preprocessing(), []
    for case in find_cases(parallel):
        prepared = plan.prepare(case)
        arrays = {
            "x": prepared.x.numpy(),
            "foreground": prepared.foreground.numpy(),
            "label": prepared.label.numpy(),
            "readers": prepared.readers.numpy(),
        }
        entry = cache.entry(case.id, {}, lambda a=arrays: (a, {"spacing_mm": [1, 1, 1]}))
        volumes.append(TrainingVolume(case.id, {}, entry))
    mirrored = Augmentation(flip=(0, 1, 2))
    crop = Crop((4, 4, 4), (1, 1, 1))
    keyed = Keyed(volumes, Opinions(), 0, Statistics({}), crop=crop, augment=mirrored)
    sizes = set()
    for epoch in range(8):
        sample = keyed[epoch, 0]
        assert sample.x.shape == (4, 4, 4, 4)
        label = sample.images[1].numpy().astype(np.uint8)
        assert np.array_equal(label, majority(sample.x.numpy().astype(np.uint8)))
        sizes.add(int(label.sum()))
    assert len(sizes) > 1


@real
@pytest.mark.parametrize(("name", "count"), [("lidc_readers", 90), ("lidc_2d_readers", 21)])
def test_real_readers_have_four_maps_of_their_own_case(name, count):
    cases = find_cases(REAL / name)
    assert len(cases) == len({c.patient for c in cases}) == count
    for case in cases:
        assert list(case.labels) == ["1", "2", "3", "4"]
        assert case.label is None
        files = [*case.images.values(), *case.labels.values()]
        assert all(path.name.startswith(f"{case.id}_") for path in files)


@real
def test_real_readers_agree_as_their_table_says():
    from volumediff.data.layouts._tables import rows

    table = {row["case"]: row for row in rows(REAL / "lidc_readers/cases.tsv", [], delimiter="\t")}
    for case in find_cases(REAL / "lidc_readers")[:10]:
        prepared = Preprocessing().prepare(case)
        row, readers = table[case.id], prepared.readers.numpy()
        assert readers.sum((1, 2, 3)).tolist() == [int(row[f"vol{n}"]) for n in range(1, 5)]
        assert agreement(readers) == pytest.approx(float(row["mean_iou"]), abs=6e-4)
        votes = np.asarray(readers.sum(0))
        assert np.array_equal(prepared.label.numpy()[0], votes >= 2)
