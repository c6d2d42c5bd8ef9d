"""What an image shows is judged by one rule, in check, in training and in inference."""

import numpy as np
import pytest
from tiny_app import save

from volumediff.data.cases import Case
from volumediff.data.check import check
from volumediff.data.content import content_remarks
from volumediff.data.foreground import background_of, foreground, padding_of
from volumediff.data.intensity import Percentile, Window
from volumediff.data.preprocessing import Preprocessing
from volumediff.errors import DataError
from volumediff.samples.preparing import UnpreparedCase, prepare_share
from volumediff.storage.cache import Cache

SHAPE = (24, 26, 22)


def ball(radius=0.7):
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    return sum(g * g for g in grid) < radius**2


def noise(low, high, seed=0):
    return np.random.default_rng(seed).uniform(low, high, SHAPE).astype(np.float32)


def head(background=0.0):
    return np.where(ball(), noise(400, 800), np.float32(background))


def ct():
    """A body of -100 to 100 HU in noisy air, the field of view a disc."""
    return np.where(ball(), noise(-100, 100), noise(-1024, -980, 1)).astype(np.float32)


def padded(value):
    x = ct()
    a, b = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE[:2]], indexing="ij")
    x[a * a + b * b > 1] = value
    return x


@pytest.mark.parametrize("background", [0, 7, -0.62, -3.0, 100, 399])
def test_a_constant_background_is_outside(background):
    x = head(background)
    assert background_of(x) == np.float32(background)
    assert np.array_equal(foreground(x, "auto"), ball())
    codes = [r.code for r in content_remarks(x, foreground(x, "auto"), Percentile())]
    assert codes == ([] if background == 0 else ["background"])


def test_nothing_outside_is_the_same_as_zero_outside(tmp_path):
    """NaN outside the brain: the same foreground and the same prepared volume as with 0."""
    save(tmp_path / "zero.nii.gz", head(), np.eye(4))
    save(tmp_path / "nan.nii.gz", head(np.nan), np.eye(4))
    plan = Preprocessing()
    zero, nan = (
        plan.prepare(Case("a", "a", {"i": tmp_path / f"{n}.nii.gz"})) for n in ("zero", "nan")
    )
    # one voxel of the object has the smallest value, which fills the others
    assert int((zero.foreground != nan.foreground).sum()) == 1
    assert float((zero.x - nan.x).abs().max()) < 0.02


def test_a_z_score_of_the_whole_volume_keeps_its_foreground():
    x = head()
    z = ((x - x.mean()) / x.std()).astype(np.float32)
    assert np.array_equal(foreground(z, "auto"), foreground(x, "auto"))


@pytest.mark.parametrize("value", [-2000, -3024])
@pytest.mark.parametrize("rule", ["auto", "otsu", "body"])
def test_padding_counts_as_air(value, rule):
    x = padded(value)
    assert padding_of(x) == value
    wanted = foreground(ct(), rule)
    assert np.array_equal(wanted, ball())
    assert np.array_equal(foreground(x, rule), wanted)
    assert "padding" in [r.code for r in content_remarks(x, wanted, Window())]
    assert padding_of(ct()) is None
    assert padding_of(padded(-1024)) is None  # is air


def test_ct_whose_air_was_set_to_one_value_keeps_its_body():
    x = np.where(ball(), noise(-100, 100), np.float32(-1000))
    for rule in ("body", "auto"):
        assert np.array_equal(foreground(x, rule), ball())
    stripped = np.where(ball(), noise(1, 80), np.float32(0))
    assert np.array_equal(foreground(stripped, "body"), ball())


def one_voxel():
    x = np.zeros(SHAPE, np.float32)
    x[9, 9, 9] = 9
    return x


LUNG = Window(-600.0, 1500.0)


@pytest.mark.parametrize(
    ("x", "intensity", "code"),
    [
        (np.zeros(SHAPE, np.float32), Percentile(), "blank"),
        (np.full(SHAPE, 7, np.float32), Percentile(), "blank"),
        (np.full(SHAPE, 7, np.float32), Window(), "blank"),
        (one_voxel(), Percentile(), "nearly_blank"),
        (noise(-1000, -991), Window(), "nearly_blank"),
        (ct() + 1024, Window(), "units"),
        (np.clip(ct() + 1024, 0, 4095).round(), LUNG, "units"),
        (noise(0, 1), Window(), "units"),
    ],
)
def test_what_shows_nothing_is_refused_everywhere(x, intensity, code, tmp_path):
    found = content_remarks(x, intensity.mask(x), intensity)
    assert [r.code for r in found if r.severity == "error"] == [code]
    save(tmp_path / "a.nii.gz", x, np.eye(4))
    with pytest.raises(DataError, match=r"a\.nii\.gz: (shows no foreground|expected HU)"):
        Preprocessing(intensity=intensity).prepare(Case("a", "a", {"i": tmp_path / "a.nii.gz"}))
    if isinstance(intensity, Percentile):
        assert code in [r.code for r in check([tmp_path]) if r.severity == "error"]


@pytest.mark.parametrize(
    ("x", "intensity"),
    [
        (ct(), Window()),
        (padded(-2000), Window()),
        (ct() + 1024, Window(1064.0, 400.0)),
        (head(), Percentile()),
    ],
)
def test_what_is_right_is_not_refused(x, intensity):
    found = content_remarks(x, intensity.mask(x), intensity)
    assert not [r for r in found if r.severity != "info"]


def test_ct_under_a_rule_for_mr_is_said_with_its_key():
    (said,) = content_remarks(ct(), Percentile().mask(ct()), Percentile())
    assert said.code == "looks_like_ct"
    assert "data.preprocessing.intensity=window" in said.message


def test_all_volumes_without_content_are_named_and_the_others_are_kept(tmp_path):
    pictures = {"a": head(), "b": np.zeros(SHAPE, np.float32), "c": head(), "d": one_voxel()}
    sources = []
    for name, x in pictures.items():
        save(tmp_path / f"{name}.nii.gz", x, np.eye(4))
        case = Case(name, name, {"i": tmp_path / f"{name}.nii.gz"})

        def make(case=case):
            return {"x": Preprocessing().prepare(case).x.numpy()}, {"spacing_mm": [1.0, 1.0, 1.0]}

        sources.append(UnpreparedCase(case, {"name": name}, make))
    cache = Cache(tmp_path / "cache", [].append)
    with pytest.raises(DataError, match=r"^2 of 4 volumes.*b\.nii\.gz: shows.*d\.nii\.gz: shows"):
        prepare_share(sources, cache, rank=0, world=1)
    there = {s.case.id for s in sources if cache.has(s.case.id, s.fingerprint)}
    assert there == {"a", "c"}
    with pytest.raises(DataError, match=r"^[^ ]*b\.nii\.gz: shows no foreground"):
        prepare_share(sources[:2], cache, rank=0, world=1)
