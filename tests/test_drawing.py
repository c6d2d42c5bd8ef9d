"""Volumes drawn from label maps: contrasts, drawing, alignment, and samples of a training."""

import math
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
import torch
from drawn_heads import NUMBERS, SPACING, STRUCTURES, head
from tiny_runs import figures, tiny, write_data

from volumediff import randomness
from volumediff.data.alignment_template import mni152
from volumediff.data.augmentation import Augmentation
from volumediff.data.contrasts import AnyContrast, MixedContrast, TissueContrast
from volumediff.data.drawing import Drawing
from volumediff.data.freesurfer import structure
from volumediff.data.intensity import Percentile
from volumediff.data.label_maps import find_label_maps, prepare_label_map, structures_of
from volumediff.data.preprocessing import Preprocessing
from volumediff.errors import DataError, UsageError
from volumediff.recipes.healthy import Healthy
from volumediff.samples import sources
from volumediff.samples.dataset import Keyed, stream
from volumediff.samples.drawn import DrawnVolumes, LabelMap
from volumediff.samples.statistics import Statistics
from volumediff.samples.volumes import TrainingVolume
from volumediff.storage.cache import CacheEntry
from volumediff.training.loop import train

# nothing but the means: no blur, no noise, no change of the anatomy
BARE = Drawing(blur=(0.0, 0.0), grain=0.0, ventricles_mm=0.0, thinning=0.0, rim=0.0)
FLAT = (0.0, 0.0)


def drawn(drawing, contrast, key, spacing=SPACING, **size):
    _, indices = head(**size)
    signal, inside = drawing(indices, STRUCTURES, contrast=contrast, spacing_mm=spacing, key=key)
    return indices, signal, inside


# contrasts


def test_tissues_lie_where_the_formula_puts_them():
    fixed = TissueContrast(
        fluid=(0.2, 0.2), white=(0.8, 0.8), grey=(0.5, 0.5), deep=(0.25, 0.25), spread=0.0
    )
    names = [structure(n) for n in (4, 2, 3, 10)]
    means = fixed(names, 1)[:, 0]
    torch.testing.assert_close(means, torch.tensor([0.2, 0.8, 0.5, 0.575]))
    flair = replace(fixed, grey=(1.5, 1.5))(names, 1)[:, 0]
    assert flair[2] > flair[1] > flair[0], "grey matter beyond white matter, as in FLAIR"


def test_any_contrast_orders_tissues_in_every_way():
    names = [structure(n) for n in (4, 2, 3)]
    orders = {tuple(AnyContrast()(names, k)[:, 0].argsort().tolist()) for k in range(60)}
    assert len(orders) == 6


def test_a_mixture_draws_by_weight():
    bright, dark = AnyContrast(mean=(0.9, 0.9)), AnyContrast(mean=(0.1, 0.1))
    mixed = MixedContrast((bright, dark), (3.0, 1.0))
    share = np.mean([float(mixed([structure(2)], k)[0, 0]) > 0.5 for k in range(400)])
    assert share == pytest.approx(0.75, abs=0.07)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnyContrast(mean=(0.5, 0.2)), r"mean: expected two numbers in \[0, 1\], got"),
        (lambda: TissueContrast(spread=1.0), r"spread: expected a number in \[0, 1\), got 1"),
        (lambda: MixedContrast(()), "of: expected at least one contrast, got none"),
        (lambda: MixedContrast((AnyContrast(),), (1.0, 2.0)), "one for each of 1 contrasts"),
        (lambda: MixedContrast((AnyContrast(),), (0.0,)), "weights: expected positive numbers"),
        (lambda: Drawing(blur=(1.0, 0.5)), "blur: expected two ascending numbers"),
        (lambda: Drawing(grain=-1.0), "grain: expected a number of at least 0, got -1"),
        (lambda: Drawing(thinning=1.5), r"thinning: expected a number in \[0, 1\], got 1.5"),
    ],
)
def test_impossible_numbers_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


# drawing


@pytest.mark.parametrize("contrast", [TissueContrast(deviation=FLAT), AnyContrast(deviation=FLAT)])
def test_without_blur_and_noise_structures_have_the_means_of_the_contrast(contrast):
    key = 1  # some of the fluid around the brain stays
    indices, signal, inside = drawn(BARE, contrast, key)
    table = contrast([s for s in STRUCTURES if s is not None], randomness.key(key, "contrast"))
    known = [i for i, s in enumerate(STRUCTURES) if s is not None]
    for i, (mean, _) in zip(known, table.tolist(), strict=True):
        values = signal[(indices == i) & inside]
        assert len(values), NUMBERS[i]
        torch.testing.assert_close(values, torch.full_like(values, mean))
    assert not signal[~inside].any()


def test_noise_has_the_deviation_of_the_contrast():
    indices, signal, _ = drawn(BARE, TissueContrast(deviation=(0.05, 0.05)), 5)
    white = signal[indices == NUMBERS.index(2)]
    assert float(white.std()) == pytest.approx(0.05, rel=0.05)


def test_left_and_right_look_alike():
    _, signal, inside = drawn(BARE, AnyContrast(deviation=FLAT), 8)
    assert torch.equal(inside, inside.flip(1))
    torch.testing.assert_close(signal, signal.flip(1))


def test_a_drawing_is_a_function_of_its_key():
    first, again, other = (drawn(Drawing(), AnyContrast(), k)[1:] for k in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_blur_does_not_darken_the_border():
    even = AnyContrast(mean=(0.7, 0.7), deviation=FLAT)
    _, signal, inside = drawn(replace(BARE, blur=(2.0, 2.0)), even, 2)
    torch.testing.assert_close(signal[inside], torch.full_like(signal[inside], 0.7))


def ventricle_mm(indices, spacing):
    """Radius of the ball of the same volume."""
    of = torch.isin(indices, torch.tensor([NUMBERS.index(4), NUMBERS.index(43)]))
    return (float(of.sum()) * spacing**3 * 3 / (4 * math.pi)) ** (1 / 3)


@pytest.mark.parametrize("key", range(6))
def test_walls_of_ventricles_move_by_the_millimetres_that_were_drawn(key):
    _, indices = head(n=80, spacing=1.0, ventricle=14.0)
    drawing = replace(BARE, ventricles_mm=5.0)
    moved = drawing._widened(indices, STRUCTURES, (1.0, 1.0, 1.0), key)
    speed = 5.0 * (2 * randomness.uniform(key, "ventricles") - 1)
    # dr/dτ = m exp(-r² / 2σ²): the wall leaves the middle of the layer that moves, σ = 3 mm
    expected = 0.0
    for _ in range(1000):
        expected += speed / 1000 * math.exp(-(expected**2) / (2 * 3.0**2))
    assert 0.6 * abs(speed) < abs(expected) < abs(speed)
    got = ventricle_mm(moved, 1.0) - ventricle_mm(indices, 1.0)
    assert got == pytest.approx(expected, abs=0.5)
    # what is far from the walls stays
    far = torch.isin(indices, torch.tensor([NUMBERS.index(n) for n in (3, 42, 24)]))
    assert float((moved != indices)[far].float().mean()) < 0.02


def test_thin_cortex_is_fluid_in_the_share_that_was_drawn():
    _, indices = head()
    drawing = replace(BARE, thinning=0.6)
    thinned = drawing._thinned(indices, STRUCTURES, SPACING, 3)
    changed = thinned != indices
    cortex = torch.isin(indices, torch.tensor([NUMBERS.index(3), NUMBERS.index(42)]))
    assert bool((cortex | ~changed).all()), "nothing but cortex gets thin"
    assert {STRUCTURES[i].tissue for i in thinned[changed].unique().tolist()} == {"csf"}
    outer = torch.nn.functional.max_pool3d(
        (indices == NUMBERS.index(24))[None].float(), 3, stride=1, padding=1
    )[0]
    surface = cortex & (outer > 0)
    share = float(changed.sum()) / float(surface.sum())
    assert share == pytest.approx(0.6 * randomness.uniform(3, "thinning"), abs=0.02)


def test_a_rim_of_the_surroundings_stays_where_it_is_asked_for():
    _, bare, without = drawn(BARE, TissueContrast(), 4)
    indices, _, within = drawn(replace(BARE, rim=1.0), TissueContrast(), 4)
    more = within & ~without
    assert bool(more.any())
    assert set(indices[more].unique().tolist()) <= {NUMBERS.index(501), NUMBERS.index(24)}
    assert not bare[~without].any()


def test_a_map_without_a_brain_is_refused():
    with pytest.raises(ValueError, match="structures: expected some of the brain, got none"):
        Drawing()(
            torch.zeros((1, 4, 4, 4), dtype=torch.uint8),
            (None, None),
            contrast=TissueContrast(),
            spacing_mm=SPACING,
            key=0,
        )


# label maps


def test_numbers_of_freesurfer():
    assert structure(0) is structure(501) is None
    assert structure(2) == structure(41) == ("cerebral white matter", "white")
    assert structure(1024) == structure(2035) == structure(3)
    with pytest.raises(KeyError):
        structure(999)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ([0, 999], "label 999 is none of FreeSurfer's numbers; map it to one of them, or to 0"),
        ([0, 501], "expected labels of a brain with FreeSurfer's numbers, got none"),
    ],
)
def test_other_numbers_are_refused(numbers, message):
    with pytest.raises(DataError, match=f"x.nii: {message}"):
        structures_of(np.array(numbers), "x.nii")


def test_a_folder_without_label_maps_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"expected label maps .* found none"):
        find_label_maps(tmp_path)
    for name in ("b.nii", "a.nii.gz", "notes.txt"):
        (tmp_path / name).write_text("")
    assert [p.name for p in find_label_maps(tmp_path)] == ["a.nii.gz", "b.nii"]


@pytest.mark.parametrize(
    ("values", "message"),
    [([0.0, 2.5], "expected whole numbers"), ([-3.0, 2.0], "up to 256 labels of at least 0")],
)
def test_other_volumes_are_no_label_maps(tmp_path, values, message):
    array = np.zeros((8, 8, 8), np.float32)
    array[2:6, 2:6, 2:4], array[2:6, 2:6, 4:6] = values
    path = tmp_path / "x.nii.gz"
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    with pytest.raises(DataError, match=message):
        prepare_label_map(path, mni152(), Preprocessing(spacing_mm=(4.0,) * 3, shape=(48, 56, 48)))


def template_labels(template):
    """The template's tissues by its intensities: fluid, cortex, white matter."""
    x = template.x / np.quantile(template.x[template.object], 0.98)
    numbers = np.select([x > 0.8, x > 0.45], [2, 3], 24)
    return np.where(template.object, numbers, 0).astype(np.int16)


@pytest.fixture(scope="module")
def label_maps(tmp_path_factory):
    """A folder with one label map, the template's own, moved by a known affine map."""
    folder, template = tmp_path_factory.mktemp("label_maps"), mni152()
    turn = np.deg2rad(7.0)
    moved = np.eye(4)
    moved[:3, :3] = 1.06 * np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    moved[:3, 3] = (9.0, -6.0, 12.0)
    image = nib.Nifti1Image(template_labels(template), moved @ template.grid.affine)
    nib.save(image, folder / "a.nii.gz")
    return folder


def test_a_label_map_comes_within_two_millimetres_of_the_template(label_maps):
    template, spacing, shape = mni152(), 2.0, (98, 116, 94)
    arrays, got, grid = prepare_label_map(
        label_maps / "a.nii.gz", template, Preprocessing(spacing_mm=(spacing,) * 3, shape=shape)
    )
    assert got == (spacing,) * 3
    assert grid.shape == shape
    np.testing.assert_allclose(grid.spacing_mm, got, rtol=1e-6)
    assert arrays["structures"].shape == (1, *shape)
    assert np.array_equal(arrays["numbers"], [0, 2, 3, 24])
    brain = arrays["foreground"][0]
    reference = Preprocessing(spacing_mm=(spacing,) * 3, shape=shape)
    # the template itself on the same grid: its brain and white matter
    folder = label_maps / "own"
    folder.mkdir()
    own = nib.Nifti1Image(template_labels(template), template.grid.affine)
    nib.save(own, folder / "own.nii.gz")
    expected, *_ = prepare_label_map(folder / "own.nii.gz", template, reference)
    for mine, theirs in (
        (brain, expected["foreground"][0]),
        (arrays["structures"][0] == 1, expected["structures"][0] == 1),
    ):
        centres = [np.argwhere(m).mean(0) * spacing for m in (mine, theirs)]
        assert np.linalg.norm(centres[0] - centres[1]) < 2.0
        sizes = [np.argwhere(m).std(0) * spacing for m in (mine, theirs)]
        assert np.abs(sizes[0] - sizes[1]).max() < 1.0
    overlap = 2 * (brain & expected["foreground"][0]).sum()
    assert overlap / (brain.sum() + expected["foreground"].sum()) > 0.96


# what is bright in healthy FLAIR

FLAIR = TissueContrast(
    fluid=(0.1, 0.1), white=(0.5, 0.5), grey=(1.25, 1.25), spread=0.0, deviation=FLAT
)


def tissue(indices, *numbers):
    return torch.isin(torch.tensor(NUMBERS)[indices.long()], torch.tensor(numbers))


def changes(key=3, **more):
    """Difference to the same volume without what is asked for."""
    indices, plain, inside = drawn(BARE, FLAIR, key)
    return indices, plain, drawn(replace(BARE, **more), FLAIR, key)[1] - plain, inside


def test_caps_brighten_white_matter_next_to_the_ventricles_alone():
    indices, plain, difference, _ = changes(caps=0.5)
    white = tissue(indices, 2, 41)
    assert not difference[~white].any()
    away = (torch.stack(torch.meshgrid(*[torch.arange(44.0) - 21.5] * 3, indexing="ij"))).norm(
        dim=0
    )[None] * 2 - 11  # from the wall of the ball
    assert float(difference[white & (away < 2)].mean()) > 0.01
    assert float(difference[white & (away > 12)].abs().max()) < 1e-4
    assert float(difference.max()) <= 0.5 * float(plain[white].max())


def test_pulsation_brightens_fluid_alone_and_not_beyond_tissue():
    found = 0
    for key in range(4):
        indices, plain, difference, inside = changes(key, pulsation=1.0)
        fluid = tissue(indices, 4, 43, 24)
        assert not difference[~fluid].any()
        assert float((plain + difference).max()) <= float(plain.max()) + 1e-6
        found += float(difference[fluid & inside].max()) > 0.1
    assert found >= 3
    assert not changes(pulsation=0.0)[2].any()


def test_regions_of_one_tissue_differ_smoothly_by_a_share_of_its_brightness():
    indices, plain, difference, _ = changes(regional=0.2)
    cortex = tissue(indices, 3, 42)
    share = torch.where(cortex, difference / plain, torch.zeros(()))
    assert 0.01 < float(share[cortex].std()) < 0.3
    pairs = cortex[:, 1:] & cortex[:, :-1]
    steps = (share[:, 1:] - share[:, :-1])[pairs]
    assert float(steps.std()) < 0.5 * float(share[cortex].std()), "neighbours are alike"


# samples


@pytest.fixture
def volumes(tmp_path):
    _, indices = head()
    np.save(tmp_path / "structures.npy", indices.numpy())
    entry = CacheEntry(tmp_path, {"spacing_mm": list(SPACING)})
    return DrawnVolumes(
        (LabelMap(entry, STRUCTURES),), 0.5, TissueContrast(), Drawing(), Percentile()
    )


def test_drawn_volumes_are_normalised_as_all_are(volumes):
    x, inside, spacing = volumes.draw(3, augment=None)
    assert spacing == SPACING
    assert x.dtype == torch.float32
    assert x.shape == inside.shape == (1, 44, 44, 44)
    assert bool((x[~inside] == -1).all())
    assert float(x.min()) >= -1
    assert float(x.max()) == 1
    share = np.mean([volumes.chosen(k) for k in range(400)])
    assert share == pytest.approx(0.5, abs=0.08)


def test_augmentation_moves_the_map_and_changes_the_volume(volumes):
    augment = Augmentation(flip=(), affine_translation_mm=8.0, gamma=0.3)
    x, inside, _ = volumes.draw(3, augment=augment)
    moved, there, _ = volumes.draw(3, augment=augment.spatial)
    _, where, _ = volumes.draw(3, augment=None)
    assert torch.equal(inside, there)
    assert not torch.equal(there, where)
    assert not torch.equal(x, moved)
    assert torch.equal(moved == -1, x == -1), "intensities keep the background"


def keyed(volumes, tmp_path):
    np.save(tmp_path / "x.npy", np.full((1, 44, 44, 44), -0.5, np.float32))
    np.save(tmp_path / "foreground.npy", np.ones((1, 44, 44, 44), bool))
    entry = CacheEntry(tmp_path, {"spacing_mm": list(SPACING)})
    real = [TrainingVolume(f"sub-{i}", {}, entry) for i in range(4)]
    return Keyed(real, Healthy(), 3, Statistics({}), drawn=volumes)


def test_samples_depend_on_their_number_alone(volumes, tmp_path):
    data = keyed(volumes, tmp_path)
    batches = [[(0, 0), (0, 1)], [(0, 2), (0, 3)], [(1, 0), (1, 1)]]
    alone, shared = (list(stream(data, iter(batches), workers=n)) for n in (0, 2))
    for a, b in zip(alone, shared, strict=True):
        assert a.keys == b.keys
        assert torch.equal(a.x, b.x)
    later = list(stream(data, iter(batches[1:]), workers=0))
    assert torch.equal(later[-1].x, alone[-1].x)
    real = [bool((x == -0.5).all()) for batch in alone for x in batch.x]
    assert 0 < sum(real) < len(real), "some are drawn, some are read"


# training


def coarse_data(root):
    """The usual phantoms, as large as heads."""
    for path in write_data(root).glob("*.nii.gz"):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(image.get_fdata(), np.diag([24.0, 24, 24, 1])), path)
    return root


def words(folder, *more):
    return (
        f"data.drawn={{label_maps: {folder}, share: 0.5}}",
        "data.preprocessing={spacing_mm: 24.0, shape: [8, 8, 8]}",
        *more,
    )


def test_a_training_that_stops_goes_on_with_the_same_volumes(label_maps, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        DrawnVolumes,
        "draw",
        lambda self, key, *, augment, draw=DrawnVolumes.draw: (
            asked.append(key) or draw(self, key, augment=augment)
        ),
    )
    root = coarse_data(tmp_path / "data")
    train(tiny(root, tmp_path / "whole", *words(label_maps)))
    assert asked, "some samples are drawn"
    train(tiny(root, tmp_path / "parts", *words(label_maps, "optim.steps=2")))
    train(tiny(root, tmp_path / "parts", *words(label_maps)))
    rows = [[r for r in figures(tmp_path / n) if "loss" in r] for n in ("whole", "parts")]
    assert rows[0] == rows[1]
    plain = tiny(root, tmp_path / "plain", words(label_maps)[1])
    train(plain)
    assert figures(tmp_path / "whole") != figures(tmp_path / "plain")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            "recipe={name: class_conditional, attribute: group, values: [control, patient]}",
            "data.drawn: expected a recipe without labels, classes and scalars, got one with a cl",
        ),
        (
            "recipe={name: healthy, scalars: [age]}",
            r"got one with attributes \(age\), which drawn volumes do not have; leave data.drawn",
        ),
        ("data.preprocessing.shape=null", "data.drawn: needs data.preprocessing.shape"),
    ],
)
def test_drawn_volumes_are_refused_where_they_lack_what_is_asked(
    label_maps, tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(sources, "prepare_label_map", None)  # refused before anything is aligned
    config = tiny(coarse_data(tmp_path / "data"), tmp_path / "run", *words(label_maps, change))
    with pytest.raises(UsageError, match=message):
        train(config)
