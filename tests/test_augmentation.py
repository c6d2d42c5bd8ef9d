import numpy as np
import pytest
import torch

from volumediff import randomness
from volumediff.data._fields import gaussian
from volumediff.data.augmentation import Augmentation

SPACING = (2.0, 2.0, 2.0)
EVERYTHING = Augmentation(
    flip=(0, 1),
    affine_degrees=8.0,
    affine_scale=0.05,
    affine_translation_mm=3.0,
    elastic_mm=2.0,
    elastic_points=5,
    bias=0.2,
    gamma=0.2,
    noise=0.05,
    contrast=0.8,
    blur_mm=1.5,
    thickness=2.0,
    spikes=0.5,
    often=0.8,
)


@pytest.fixture(scope="module")
def foreground():
    p = torch.stack(torch.meshgrid(*[torch.linspace(-1, 1, 20)] * 3, indexing="ij"))
    return (p.norm(dim=0) < 0.75)[None]


@pytest.fixture(scope="module")
def x(foreground):
    tissue = 0.4 * gaussian(randomness.normal((1, 20, 20, 20), "x"), (2.0, 2.0, 2.0)) / 0.1
    return torch.where(foreground, tissue.clamp(-0.8, 0.8), -1.0)


@pytest.fixture(scope="module")
def label(x, foreground):
    return torch.where(x > 0, 3, 1).to(torch.uint8) * foreground


def test_sample_is_a_function_of_the_key(x, label, foreground):
    def run(key):
        return EVERYTHING(x, key, spacing_mm=SPACING, label=label, foreground=foreground)

    first = run(11)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - the global state must not matter
    kept, numpy_kept = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    again = run(11)
    assert torch.equal(torch.random.get_rng_state(), kept)
    assert np.array_equal(np.random.get_state()[1], numpy_kept)  # noqa: NPY002
    for name in ("x", "label", "foreground"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.x, run(12).x)


def test_nothing_asked_is_the_identity(x, label):
    same = Augmentation(flip=())(x, 3, spacing_mm=SPACING, label=label)
    torch.testing.assert_close(same.x, x)
    assert torch.equal(same.label, label)
    assert same.foreground is None


def test_flip_mirrors_half_of_the_samples(x, label):
    flip = Augmentation(flip=(1,))
    mirrored = 0
    for key in range(40):
        out = flip(x, randomness.key("flip", key), spacing_mm=SPACING, label=label)
        if torch.equal(out.label, label.flip(2)):
            mirrored += 1
            torch.testing.assert_close(out.x, x.flip(2))
        else:
            torch.testing.assert_close(out.x, x)
    assert 8 <= mirrored <= 32  # 20 expected, standard deviation 3.2


@pytest.mark.parametrize(
    "options", [{"affine_degrees": 10.0}, {"affine_translation_mm": 4.0}, {"elastic_mm": 4.0}]
)
def test_labels_move_with_the_image(x, foreground, options):
    """The foreground of the moved image is the moved foreground, up to half a voxel."""
    move = Augmentation(flip=(), **options)
    labelled = torch.where(foreground, 0.5, -1.0)
    moved = 0
    for key in range(4):
        out = move(labelled, key, spacing_mm=SPACING, foreground=foreground)
        agreement = (out.x > -0.25) == out.foreground
        assert float(agreement.float().mean()) > 0.97
        moved += float((out.foreground != foreground).float().mean())
    assert moved > 0.02


def test_labels_keep_their_values(x, label):
    for key in range(4):
        out = EVERYTHING(x, key, spacing_mm=SPACING, label=label)
        assert set(out.label.unique().tolist()) <= {0, 1, 3}


def test_translation_is_in_millimetres(foreground):
    point = torch.where(foreground, 0.5, -1.0)
    shift = Augmentation(flip=(), affine_translation_mm=6.0)
    centres = []
    for key in range(12):
        out = shift(point, key, spacing_mm=SPACING, foreground=foreground)
        centres.append(2.0 * out.foreground[0].nonzero().float().mean(0))
    offset = torch.stack(centres) - 2.0 * foreground[0].nonzero().float().mean(0)
    assert offset.abs().max() < 7
    assert offset.abs().max() > 3


def test_gamma_and_bias_keep_the_background_and_the_range(x, foreground):
    for options in ({"gamma": 0.3}, {"bias": 0.3}, {"noise": 0.1}):
        change = Augmentation(flip=(), **options)
        out = change(x, 5, spacing_mm=SPACING, foreground=foreground)
        assert bool((out.x[~foreground] == -1).all())
        assert out.x.amin() >= -1
        assert out.x.amax() <= 1
        assert (out.x - x).abs()[foreground].mean() > 1e-3


def test_gamma_is_a_power_of_the_signal(x, foreground):
    out = Augmentation(flip=(), gamma=0.3)(x, 5, spacing_mm=SPACING)
    signal, changed = ((v[foreground] + 1) / 2 for v in (x, out.x))
    exponent = torch.log(changed) / torch.log(signal)
    inner = (signal > 0.15) & (signal < 0.85)
    assert exponent[inner].std() < 1e-3
    assert 0.01 < exponent[inner].mean().log().abs() <= 0.3 + 1e-4


def test_noise_has_at_most_the_stated_deviation(x, foreground):
    noisy = Augmentation(flip=(), noise=0.1)
    deviations = [
        float((noisy(x, k, spacing_mm=SPACING).x - x)[foreground].std()) for k in range(12)
    ]
    assert max(deviations) < 0.105
    assert max(deviations) > 0.05


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="axes out of 0, 1, 2"):
        Augmentation(flip=(3,))
    with pytest.raises(ValueError, match="bias: expected a number of at least 0"):
        Augmentation(bias=-1.0)
    with pytest.raises(ValueError, match="at least 4 control points"):
        Augmentation(elastic_points=3)
    with pytest.raises(ValueError, match="affine_scale: expected less than 1"):
        Augmentation(affine_scale=1.0)


def test_contrast_is_a_rising_curve_of_the_signal_between_its_ends(x, foreground):
    curved = Augmentation(flip=(), contrast=1.0)
    strongest = 0.0
    for key in range(6):
        out = curved(x, key, spacing_mm=SPACING, foreground=foreground).x
        assert bool((out[~foreground] == -1).all())
        order = x[foreground].argsort()
        signal, changed = x[foreground][order], out[foreground][order]
        slopes = changed.diff() / signal.diff().clamp_min(1e-4)
        assert float(changed.diff().min()) >= -1e-6, "the order of intensities stays"
        # each slope is e^u over the mean of all, u in (-1, 1)
        assert float(slopes[signal.diff() > 1e-3].max()) < np.e**2 + 0.1
        strongest = max(strongest, float((changed - signal).abs().max()))
    assert strongest > 0.1


def test_blur_thickness_and_spikes_act_as_they_are_called(x, foreground):
    def rough(v, axis):
        return float(v.diff(dim=axis)[:, 6:13, 6:13, 6:13].square().mean())

    blurred = [Augmentation(flip=(), blur_mm=4.0)(x, k, spacing_mm=SPACING).x for k in range(4)]
    assert min(rough(b, 1) / rough(x, 1) for b in blurred) < 0.7
    assert max(rough(b, 1) / rough(x, 1) for b in blurred) <= 1.01
    thick = Augmentation(flip=(), thickness=6.0)
    shares = [
        [rough(v, axis) / rough(x, axis) for axis in (1, 2, 3)]
        for v in (thick(x, k, spacing_mm=SPACING).x for k in range(6))
    ]
    assert len({int(np.argmin(s)) for s in shares}) > 1, "any axis"
    assert min(min(s) for s in shares) < 0.6
    wave = Augmentation(flip=(), spikes=1.0)(x, 2, spacing_mm=SPACING).x
    difference = torch.where(foreground, wave - x, 0.0)
    assert float(difference.abs().max()) > 0.05
    assert bool((wave[~foreground] == -1).all())


def test_changes_of_intensity_come_as_often_as_asked(x):
    some = Augmentation(flip=(), gamma=0.3, often=0.3)
    moved = sum(
        float((some(x, k, spacing_mm=SPACING).x - x).abs().max()) > 1e-3 for k in range(60)
    )
    assert 8 <= moved <= 30  # 18 expected, standard deviation 3.5


def test_shape_and_intensity_are_two_halves(x, label):
    spatial, intensities = EVERYTHING.spatial, EVERYTHING.intensities
    moved = spatial(x, 5, spacing_mm=SPACING, label=label)
    assert torch.equal(moved.label, EVERYTHING(x, 5, spacing_mm=SPACING, label=label).label)
    still = intensities(x, 5, spacing_mm=SPACING, label=label)
    assert torch.equal(still.label, label)
    assert not torch.equal(still.x, x)
    assert intensities.spatial == Augmentation(flip=(), elastic_points=5, often=0.8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thickness": 0.5}, "thickness: expected a factor of at least 1, got 0.5"),
        ({"often": 0.0}, "often: expected a probability above 0, got 0"),
        ({"blur_mm": -1.0}, "blur_mm: expected a number of at least 0, got -1"),
    ],
)
def test_impossible_scanners_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**options)
