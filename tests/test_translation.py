"""Missing channels: recipe, translators against closed forms, files on the grid of the source."""

import json

import nibabel as nib
import numpy as np
import pytest
import torch
from anomaly_models import tiny_autoencoder
from scipy.stats import spearmanr
from tiny_app import WINDOW, base, oblique, program, save, tiny_run
from tiny_runs import phantom, tiny

import volumediff
from volumediff.condition import Condition
from volumediff.config import load, shipped
from volumediff.config.files import config_path
from volumediff.data.volume import read
from volumediff.errors import DataError, UsageError
from volumediff.kernels.gaussian import Gaussian
from volumediff.model import Model
from volumediff.networks._base import Network
from volumediff.randomness import key
from volumediff.recipes._base import Subject
from volumediff.recipes.translation import Translation
from volumediff.samplers.ddim import DDIM
from volumediff.schedules.cosine import Cosine
from volumediff.settings.run_config import METHODS, parse, with_words
from volumediff.spaces.latent import Latent
from volumediff.spaces.voxel import Voxel
from volumediff.spaces.wavelet import Wavelet
from volumediff.tasks import build_task
from volumediff.training.loop import train
from volumediff.translation.method_files import load_translator
from volumediff.translation.translators import TranslationPair
from volumediff.translation.translators.diffusion import DiffusionTranslator
from volumediff.translation.translators.histogram_match import HistogramMatch
from volumediff.translation.translators.mean_target import MeanTarget
from volumediff.translation.translators.polynomial import Polynomial

__all__ = ["base", "program"]  # fixtures

SCHEDULE = Cosine(zero_terminal_snr=True)
SHAPE = (6, 6, 6)
INSIDE = torch.ones((1, 1, *SHAPE), dtype=torch.bool)


def uniform(*shape, seed=0):
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


class SumOfImages(Network):
    """x0 is the mean of the image conditions, whatever the state is."""

    def __init__(self, channels, images):
        super().__init__(channels, channels, image_channels=images)

    @property
    def stride(self):
        return 1, 1, 1

    def body(self, x, e):
        k = self.in_channels
        return x[:, k:].unflatten(1, (-1, k)).mean(1)


MODEL = Model(
    Voxel(), Gaussian(SCHEDULE, prediction="x0"), SumOfImages(1, 1), recipe=Translation()
)


# --- recipe --------------------------------------------------------------------------------------


def test_targets_and_sources_are_told_apart_by_name_or_number():
    x = torch.arange(4.0)[:, None, None, None].expand(4, *SHAPE) / 4
    names = ("t1n", "t1c", "t2w", "t2f")
    for targets in (("t2w",), (2,), (-2,)):
        recipe = Translation(targets).numbered(names)
        target = recipe.target(Subject(x), atlas=None, key=0)
        torch.testing.assert_close(target.x, x[2:3])
        assert [float(i.mean()) for i in target.images] == [0.0, 0.25, 0.75]
        assert recipe.given(4) == (0, 1, 3)
        assert (recipe.channels(4), recipe.image_channels(4)) == (1, (1, 1, 1))
    several = Translation(("t2f", "t1n"), atlas=True).numbered(names)
    target = several.target(Subject(x), atlas=x, key=0)
    torch.testing.assert_close(target.x, x[[3, 0]])  # in the order that is asked for
    assert [len(i) for i in target.images] == [4, 1, 1] == list(several.image_channels(4))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["recipe.targets=[FLAIR]"],
            "recipe.targets: expected names of data.channels (none), got FLAIR",
        ),
        (["data.channels=[T1w,T2w]", "recipe.targets=[FLAIR]"], "(T1w, T2w), got FLAIR"),
        (["data.channels=[T1w]"], "expected volumes with a channel beside the 1"),
        (
            ["data.channels=[T1w,T2w]", "recipe.targets=[5]"],
            "expected channels from 0 to 1, got 5",
        ),
        (["data.channels=[T1w,T2w]", "recipe.targets=[1,-1]"], "expected different channels"),
        (["data.channels=[T1w,T2w]", "recipe.targets=[0,1]"], "beside the 2 that are drawn"),
        (["data.channels=[T1w,T2w]", "recipe.targets=[]"], "expected one or more different"),
    ],
)
def test_channels_that_do_not_fit_are_one_line(tmp_path, words, said):
    config = tiny(tmp_path, tmp_path / "run", "recipe.name=translation", *words)
    with pytest.raises(UsageError) as error:
        build_task(config)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["translation", "palette_translation", "cwdm"])
def test_the_training_half_of_a_method_is_laid_over_a_pipeline(name):
    words = [f"method={name}", "data.channels=[T1w,T2w,FLAIR]", "recipe.targets=[T2w]"]
    config = parse(with_words(load(config_path("pipelines", "wavelet_64")), words))
    task = build_task(config)
    assert task.recipe.diffused(3) == (1,)
    assert task.model.network.image_channels == 16
    assert task.refusals.translate is None
    load_translator(name).check(task.model)


def test_no_method_of_two_folders_has_one_name():
    names = [name for folder in METHODS for name in shipped(folder)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "space", [Voxel(), Wavelet(), Latent(tiny_autoencoder())], ids=["voxel", "wavelet", "latent"]
)
def test_every_source_is_encoded_by_itself_in_the_space_of_the_targets(space):
    k = space.channels(1)
    model = Model(
        space, Gaussian(SCHEDULE, prediction="x0"), SumOfImages(k, 2 * k), recipe=Translation()
    )
    x = uniform(1, 2, 8, 8, 8)
    inside = torch.ones((1, 1, 8, 8, 8), dtype=torch.bool)
    (drawn,) = DiffusionTranslator(DDIM(1)).draws(
        model, x, foreground=inside, key=0, condition=Condition()
    )
    each = [space.encode(x[:, i : i + 1]) for i in (0, 1)]
    torch.testing.assert_close(drawn, space.decode((each[0] + each[1]) / 2, (8, 8, 8)))


# --- translators ---------------------------------------------------------------------------------


def drawn(translator, sources, **more):
    given = {"foreground": INSIDE, "key": 0, "condition": Condition()} | more
    return list(translator.draws(MODEL, sources, **given))


def test_a_polynomial_finds_a_polynomial_of_two_sources_and_no_more():
    def law(x):
        a, b = x[:, :1], x[:, 1:]
        return torch.cat([0.2 + 0.3 * a - 0.5 * a * b**2 + 0.1 * b**3, -a], dim=1)

    volumes = [uniform(1, 2, *SHAPE, seed=i) for i in range(3)]
    outside = torch.zeros((1, *SHAPE), dtype=torch.bool)
    outside[:, 0] = True
    pairs = []
    for x in volumes:
        y = law(x)[0]
        y[:, outside[0]] = 7.0  # what is not foreground teaches nothing
        pairs.append(TranslationPair(x[0], y, ~outside))
    new = uniform(1, 2, *SHAPE, seed=9)
    (found,) = drawn(Polynomial(3).fit(iter(pairs)), new)
    torch.testing.assert_close(found, law(new), atol=1e-5, rtol=1e-5)
    (line,) = drawn(Polynomial(1).fit(iter(pairs)), new)
    inside = ~outside[0].numpy()
    a = np.concatenate([p.sources.numpy()[:, inside].T for p in pairs]).astype(float)
    y = np.concatenate([p.targets.numpy()[:, inside].T for p in pairs]).astype(float)
    best, *_ = np.linalg.lstsq(np.column_stack([np.ones(len(a)), a]), y, rcond=None)
    columns = new[0].flatten(1).double().numpy()
    expected = (best.T @ np.vstack([np.ones(columns.shape[1]), columns])).reshape(2, *SHAPE)
    np.testing.assert_allclose(line[0].numpy(), expected, atol=1e-6)


def test_a_matched_histogram_is_that_of_the_targets_whatever_curve_made_the_source():
    y = uniform(1, 1, *SHAPE, seed=1)
    pairs = [TranslationPair(y[0] * 0, y[0], INSIDE[0])] * 2
    (found,) = drawn(HistogramMatch().fit(iter(pairs)), (y**3 - 0.1).clamp(-1, 1))
    torch.testing.assert_close(found, y, atol=2e-2, rtol=0)  # 257 levels of 216 voxels
    assert torch.equal(found.flatten().argsort(), y.flatten().argsort())
    with pytest.raises(ValueError, match="expected a channel from 0 to 0, got 1"):
        drawn(HistogramMatch(1).fit(iter(pairs)), y)


def test_the_mean_target_is_the_mean_and_needs_one_shape():
    pairs = [
        TranslationPair(uniform(1, *SHAPE), uniform(1, *SHAPE, seed=i), INSIDE[0])
        for i in range(3)
    ]
    (found,) = drawn(MeanTarget().fit(iter(pairs)), uniform(1, 1, *SHAPE))
    torch.testing.assert_close(found[0], torch.stack([p.targets for p in pairs]).mean(0))
    odd = TranslationPair(uniform(1, 4, 6, 6), uniform(1, 4, 6, 6), INSIDE[0, :, :4])
    with pytest.raises(ValueError, match="expected training volumes of one shape"):
        MeanTarget().fit(iter([*pairs, odd]))
    with pytest.raises(ValueError, match="use polynomial"):
        drawn(MeanTarget().fit(iter(pairs)), uniform(1, 1, 4, 6, 6), foreground=INSIDE[:, :, :4])
    for empty in (MeanTarget(), Polynomial(), HistogramMatch()):
        with pytest.raises(ValueError, match="expected at least one training volume, got none"):
            empty.fit(iter([]))


# --- files ---------------------------------------------------------------------------------------


def write_pairs(root, count=6):
    """T1w and FLAIR = 200 - T1w within an ellipsoid."""
    for i in range(count):
        x = phantom(i)
        y = np.where(x > 0, 200 - x, 0).astype(np.float32)
        for name, array in (("T1w", x), ("FLAIR", y)):
            save(root / f"sub-{i:02d}_{name}.nii.gz", array, np.diag([3.0, 3, 3, 1]))
    return root


TRANSLATION = ("data.channels=[T1w,FLAIR]", "recipe={name: translation, targets: [FLAIR]}")


@pytest.fixture(scope="module")
def translator_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translator")
    train(tiny(write_pairs(folder / "data"), folder / "run", *TRANSLATION, "optim.steps=2"))
    return folder / "run"


@pytest.fixture(scope="module")
def windowed_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("windowed")
    words = (*TRANSLATION, "optim.steps=2", WINDOW)
    train(tiny(write_pairs(folder / "data"), folder / "run", *words))
    return folder / "run"


def copying(trained):
    """The run with a model whose FLAIR is T1w."""
    model = Model(Voxel(), MODEL.kernel, MODEL.network, recipe=trained.recipe)
    trained.task.model = trained.task.module = model
    return trained


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PSR"])
def test_a_translation_lies_on_the_voxels_of_its_source(windowed_run, tmp_path, axes):
    rng = np.random.default_rng(0)
    values = rng.uniform(20, 180, (8, 8, 8)).astype(np.float32)
    values[:2] = 0
    source = save(tmp_path / "sub-9_T1w.nii.gz", values, oblique(axes))
    run = volumediff.load(windowed_run)
    result = volumediff.Run(copying(run.trained)).translate(source, sampler={"steps": 1})
    # in the unit of the window, which CT files have
    np.testing.assert_allclose(result.images["FLAIR"], values, atol=1e-3)
    assert result.facts["unit"] == "HU"
    image = result.to_nibabel()
    np.testing.assert_array_equal(image.affine, nib.load(source).affine)
    assert nib.aff2axcodes(image.affine) == tuple(axes)
    with pytest.raises(UsageError, match="choose from FLAIR"):
        result.to_nibabel("T2w")


def test_without_a_unit_intensities_are_from_0_the_background_to_1(translator_run, tmp_path):
    values = phantom(40) * 7.0
    source = save(tmp_path / "sub-9_T1w.nii.gz", values, np.diag([3.0, 3, 3, 1]))
    run = volumediff.load(translator_run)
    result = volumediff.Run(copying(run.trained)).translate(source, sampler={"steps": 1})
    low, high = np.percentile(values[values > 0], [0.5, 99.9])
    expected = np.where(values > 0, ((values - low) / (high - low)).clip(0, 1), 0)
    np.testing.assert_allclose(result.images["FLAIR"], expected, atol=1e-5)
    assert result.facts["unit"] == "0 to 1"
    assert result.facts["synthetic"] is True


def test_mean_and_deviation_are_those_of_the_single_draws(translator_run, tmp_path):
    run = volumediff.load(translator_run)
    source = save(tmp_path / "sub-9_T1w.nii.gz", phantom(41), np.diag([3.0, 3, 3, 1]))
    result = run.translate(source, samples=3, seed=4)
    assert result.facts["draws"] == 3
    one = run.translate(source, samples=1, seed=4)
    assert not one.deviations
    trained = run.trained
    ready = trained.preprocessing.of_channels((0,)).prepare_volumes([read(source)])
    (digest,) = (e["sha256"] for e in result.facts["inputs"].values())
    asked = load_translator("translation", ["samples=3"])
    draws = asked.draws(
        trained.diffusion,
        ready.x[None],
        foreground=ready.foreground[None],
        key=key(4, "translate", digest),
        condition=Condition(),
    )
    values = np.stack([d[0, 0].clamp(-1, 1).numpy() / 2 + 0.5 for d in draws])
    values = values * ready.foreground[0].numpy()
    np.testing.assert_allclose(result.images["FLAIR"], values.mean(0), atol=1e-5)
    np.testing.assert_allclose(result.deviations["FLAIR"], values.std(0, ddof=1), atol=1e-5)
    np.testing.assert_allclose(one.images["FLAIR"], values[0], atol=1e-5)
    assert values.std(0).max() > 0.01


def test_a_case_without_its_target_is_translated_and_the_files_say_how(
    translator_run, program, tmp_path
):
    data = tmp_path / "in"
    for i in (50, 51):
        save(data / f"sub-{i}_T1w.nii.gz", phantom(i), np.diag([3.0, 3, 3, 1]))
    out = tmp_path / "out"
    words = ("translate", data, "--run", translator_run, "-o", out, "samples=2", "sampler.steps=2")
    code, _, said = program(*words)
    assert code == 0, said
    names = sorted(p.name for p in out.glob("sub-50*"))
    assert names == [
        "sub-50_desc-deviation_FLAIR.nii.gz",
        "sub-50_desc-translated.json",
        "sub-50_desc-translated_FLAIR.nii.gz",
    ]
    facts = json.loads((out / "sub-50_desc-translated.json").read_text())
    assert (facts["sources"], facts["targets"]) == (["T1w"], ["FLAIR"])
    assert facts["network_calls"] == 4
    assert (out / facts["seen"]).is_file()
    before = {p.name: p.read_bytes() for p in out.glob("*.nii.gz")}
    code, _, said = program(*words)
    assert code == 0
    assert "finished before" in said
    # the same file by another name, alone, from Python: the same voxels
    other = save(tmp_path / "renamed.nii.gz", phantom(50), np.diag([3.0, 3, 3, 1]))
    run = volumediff.load(translator_run)
    found = run.translate(other, samples=2, sampler={"steps": 2})
    stored = nib.load(out / "sub-50_desc-translated_FLAIR.nii.gz").get_fdata()
    (digest,) = (e["sha256"] for e in found.facts["inputs"].values())
    if digest == facts["inputs"]["T1w"]["sha256"]:
        np.testing.assert_allclose(found.images["FLAIR"], stored, atol=1e-6)
    saved = found.save(tmp_path / "saved", case="x")
    assert "x_desc-translated_FLAIR.nii.gz" in {p.name for p in saved}
    assert {p.name: p.read_bytes() for p in out.glob("*.nii.gz")} == before


def test_what_cannot_be_translated_is_one_line(translator_run, windowed_run, program, tmp_path):
    source = save(tmp_path / "a_T1w.nii.gz", phantom(60), np.diag([3.0, 3, 3, 1]))
    out = tmp_path / "out"

    def said(*words, code):
        got, _, text = program(*words)
        assert got == code, text
        assert text.strip().count("\n") == 0, text
        return text

    translated = ("--run", translator_run, "-o", out)
    text = said("translate", source, *translated, "--method", "cwmd", code=2)
    assert "Did you mean 'cwdm'?" in text
    text = said("translate", source, *translated, "samples=0", code=2)
    assert "samples: expected at least 1, got 0" in text
    text = said("localize", source, *translated, code=2)
    assert "was trained to translate" in text
    text = said("segment", source, *translated, code=2)
    assert "was trained to translate" in text
    text = said("translate", source, *translated, "--channels", "T1w,T2w", code=2)
    assert "expected the names of 1 images, as many as" in text
    run = volumediff.load(translator_run)
    with pytest.raises(DataError, match="has 2 channels, the run takes 1 \\(T1w\\)"):
        run.translate([source, source])


def test_a_run_that_was_not_trained_to_translate_says_so(program, tmp_path, base):
    source = save(tmp_path / "a_T1w.nii.gz", phantom(60), np.diag([3.0, 3, 3, 1]))
    code, _, text = program("translate", source, "--run", tiny_run(base), "-o", tmp_path / "out")
    assert code == 2
    assert "was not trained to translate; train with the recipe translation" in text


@pytest.mark.parametrize("method", ["polynomial", "histogram_match", "mean_target"])
def test_baselines_learn_from_the_training_part_of_the_run(translator_run, tmp_path, method):
    run = volumediff.load(translator_run)
    source = translator_run.parent / "data" / "sub-00_T1w.nii.gz"
    result = run.translate(source, method=method)
    assert result.facts["network_calls"] == 0
    found, x = result.images["FLAIR"], phantom(0)
    assert (found[x == 0] == 0).all()
    if method == "polynomial":  # FLAIR falls where T1w rises
        assert np.corrcoef(found[x > 0], x[x > 0])[0, 1] < -0.9
    if method == "histogram_match":
        assert spearmanr(found[x > 0], x[x > 0]).statistic > 0.99
