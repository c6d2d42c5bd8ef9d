"""The rows of one pipeline each: latents of masks, wavelets, slices, patches; trained and used."""

import json

import pytest
import torch
from tiny_app import program  # noqa: F401 - a fixture
from tiny_runs import tiny, write_data

from volumediff.condition import Condition
from volumediff.config import config_path, load
from volumediff.errors import UsageError
from volumediff.kernels.gaussian import Gaussian
from volumediff.losses._base import LossContext
from volumediff.losses.l1_noise import L1Noise
from volumediff.losses.l1_state import L1State
from volumediff.networks.unet import UNet
from volumediff.planning.planner import trace
from volumediff.planning.tracer import Tracer
from volumediff.randomness import normal
from volumediff.recipes.label_diffusion import LabelDiffusion
from volumediff.runs.trained import load_trained
from volumediff.schedules.cosine import Cosine
from volumediff.segmentation.method_files import load_segmenter
from volumediff.settings.run_config import load_run_config
from volumediff.spaces.voxel import Voxel
from volumediff.tasks import build_task
from volumediff.training.loop import train

CODEC = "autoencoder={name: kl, latent_channels: 3, widths: [4, 8], strides: [[2, 2, 2]]}"
ROWS = {
    "lsegdiff": "latent_64",
    "sdseg": "latent_64",
    "wavelet_labels": "wavelet_64",
    "pseudo3d_labels": "pseudo3d_64",
    "patchddm": "patch_64",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("labelled"), cases=4, labels=True)


@pytest.fixture(scope="module")
def codecs(data, tmp_path_factory):
    """Runs of an autoencoder of masks and of one of images."""
    base = tmp_path_factory.mktemp("codecs")
    masks = "recipe={name: label_maps, labels: [1]}"
    words = ["task=autoencoder", CODEC, "optim.steps=2", "validation.every=2"]
    return {
        "masks": train(tiny(data, base / "masks", *words, masks)),
        "images": train(tiny(data, base / "images", *words)),
    }


def small(root, output, method, pipeline, codecs, *words):
    """A run of a few steps, made of the pipeline's file and the method's."""
    space = []
    if pipeline.startswith("latent"):
        space = [f"space.autoencoder={codecs['masks']}"]
        if method == "sdseg":
            space += [f"space.image.autoencoder={codecs['images']}"]
    return load_run_config(
        pipeline,
        [
            f"method={method}",
            f"data.root={root}",
            "data.preprocessing.shape=[8,8,8]",
            "data.split={validation: 0.3, calibration: 0.0}",
            "network.widths=[4,8]",
            "network.groups=2",
            "memory={dtype: float32}",
            "crop=null",
            "optim={lr: 0.001, steps: 2, warmup: 1, batch_size: 2, ema: 0.9}",
            "validation={every: 2, volumes: 1}",
            f"output={output}",
            *space,
            *words,
        ],
    )


@pytest.mark.parametrize("method", ROWS)
def test_rows_train_and_segment(method, data, codecs, tmp_path, program):  # noqa: F811
    run = train(small(data, tmp_path / "run", method, ROWS[method], codecs))
    steps = [] if method == "sdseg" else ["sampler.steps=2", "samples=2"]
    case = next(data.glob("*_T1w.nii.gz"))
    code, out, text = program("segment", case, "--run", run, "-o", tmp_path / "out", *steps)
    assert code == 0, out + text
    (sidecar,) = (tmp_path / "out").rglob("*_dseg.json")
    said = json.loads(sidecar.read_text())
    assert said["method"] == method, "the method of the run, as it was trained for"
    assert said["network_calls"] == (1 if method == "sdseg" else 4)
    assert ("oracle_dice" in said) == ROWS[method].startswith("latent")
    if "oracle_dice" in said:
        assert said["oracle_dice"]["labels"]["1"]["dice"] is not None


@pytest.mark.parametrize("method", ROWS)
@pytest.mark.parametrize("pipeline", sorted(set(ROWS.values())))
def test_rows_are_for_one_pipeline_and_say_why(method, pipeline):
    words = [f"method={method}"]
    if pipeline == ROWS[method]:
        with torch.device("meta"):
            task = build_task(load_run_config(pipeline, words))
        load_segmenter(method).check(task.module)
        return
    with pytest.raises(UsageError, match=f"method={method}: expected a configuration with "):
        load_run_config(pipeline, words)


def test_a_configuration_that_is_made_to_fit_is_taken():
    words = ["method=wavelet_labels", "space={name: wavelet}", "crop=null"]
    assert load_run_config("patch_64", words).method == "wavelet_labels"


def test_patchddm_codes_zero_and_one():
    assert load(config_path("segmentation", "patchddm"))["train"]["recipe"]["coding"] == {
        "name": "signed",
        "absent": 0.0,
    }


def test_labels_flip_in_the_latents_of_a_binary_autoencoder(data, tmp_path):
    """Bits of masks, which the discrete kernel takes; the image has an encoder of its own."""
    binary = "autoencoder={name: binary, latent_channels: 3, widths: [4, 8], strides: [[2, 2, 2]]}"
    masks = "recipe={name: label_maps, labels: [1]}"
    words = ["task=autoencoder", binary, masks, "optim.steps=2", "validation.every=2"]
    codec = train(tiny(data, tmp_path / "bits", *words))
    space = f"space={{name: latent, autoencoder: {codec}, image: {{name: strided, widths: 4}}}}"
    schedule = "{name: cosine, zero_terminal_snr: true}"
    kernel = f"kernel={{name: discrete, schedule: {schedule}}}"
    words = [space, kernel, "recipe={name: label_diffusion, labels: [1]}", "optim.steps=2"]
    model = load_trained(train(tiny(data, tmp_path / "run", *words)), device="cpu").model
    segmenter = load_segmenter("label_diffusion", ["sampler={name: ancestral, steps: 2}"])
    segmenter.check(model)
    x = normal((1, 1, 8, 8, 8), "x")
    found = segmenter.segment(
        model, x, foreground=torch.ones_like(x) > 0, spacing_mm=(3.0, 3.0, 3.0), key=0
    )
    assert set(found.labels.unique().tolist()) <= {0, 1}
    bits = model.encode(2 * (x > 0).float() - 1)
    assert bits.abs().unique().tolist() == [1.0]


# --- absolute errors --------------------------------------------------------------------------


def test_absolute_errors_by_hand():
    kernel = Gaussian(Cosine(), prediction="x0")
    z_0, noise, t = normal((2, 1, 4, 4, 4), "z"), normal((2, 1, 4, 4, 4), "n"), torch.rand(2)
    z_t = kernel.corrupt(z_0, t, noise)
    output = z_0 + 0.25
    network = UNet(1, 1, widths=(4,), blocks=1, groups=2)
    context = LossContext(
        space=Voxel(),
        frame=Voxel(),
        kernel=kernel,
        network=network,
        recipe=LabelDiffusion(),
        x=z_0,
        images=(),
        distance_mm=None,
        condition=Condition(),
        output=output,
        z_0=z_0,
        z_t=z_t,
        t=t,
        noise=noise,
        prediction=kernel.predict(output, z_t, t),
    )
    torch.testing.assert_close(L1State()(context), torch.full((2,), 0.25))
    alpha, sigma = Cosine()(t)
    wanted = (0.25 * alpha / sigma).float()
    torch.testing.assert_close(L1Noise()(context), wanted, rtol=1e-4, atol=1e-6)


# --- memory -----------------------------------------------------------------------------------


def test_five_labels_and_five_samples_of_256_fit_the_plan():
    """What the engine holds beside the network is in the plan of every stage that follows."""
    words = ["method=lsegdiff", "space.autoencoder=runs/masks_256"]
    one, five = (
        trace(load_run_config("latent_256", [*words, f"recipe.labels={labels}"]), mode="infer")
        for labels in ("[1]", "[1,2,3,4,5]")
    )
    voxels = 256**3 / 1e9
    # mean, squares and sum of the members in float32 and their votes as integers; label maps of
    # five samples; the image and its foreground
    held = 5 * 4 * 4 * voxels + 3 * voxels
    denoise = {name: five.stages[name].device / 1e9 for name in ("denoise", "decode", "fuse")}
    assert denoise["denoise"] > held
    assert denoise["decode"] > held
    grown = (five.stages["denoise"].device - one.stages["denoise"].device) / 1e9
    assert grown > 4 * 4 * 4 * voxels, "of four labels more"
    assert five.card_gb < 24, "a card of 24 GB holds it without any slabs"


def test_the_plan_is_what_the_engine_holds(data, codecs, tmp_path):
    """A real segmentation with five samples, traced, against the plan of its run."""
    words = ["data.preprocessing.shape=[32,32,32]", "network.widths=[4,4]"]
    config = small(data, tmp_path / "run", "lsegdiff", "latent_64", codecs, *words)
    task = build_task(config)
    x = normal((1, 1, 32, 32, 32), "x")
    everywhere = torch.ones_like(x, dtype=torch.bool)
    segmenter = load_segmenter("lsegdiff", ["samples=5", "sampler.steps=2", "post=[]"])
    task.module.eval()
    with Tracer() as tracer:
        tracer.adopt("weights", task.module.state_dict().values())
        tracer.adopt("other", [x, everywhere])
        segmenter.segment(task.module, x, foreground=everywhere, spacing_mm=(3.0, 3.0, 3.0), key=0)
    planned = trace(config, mode="infer").peak_gb
    assert planned == pytest.approx(tracer.peak.device / 1e9, rel=0.1)
